"""An estimate of the cycles that an inference takes, from what the emulated CPU executed.

Each block of code that ran is given to llvm-mca, which plays it on a model of the core's pipelines as if it ran over
and over (https://llvm.org/docs/CommandGuide/llvm-mca.html); the models are made from Arm's optimization guides.
What the caches would have had to fetch is set against it, piece by piece of the run: the slower of the two is what a
piece takes, because these cores fetch ahead of what they compute.

Nothing here was fitted to measured times. How far it is off: docs/frontier.md.
"""

import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reflow_tf.errors import InputError, failure_of
from reflow_tf.foreign import say_why
from reflow_tf.runtimes.aarch64.cpus import LINE_BYTES, Cpu

_OLDEST = 17
_VERSIONS = range(_OLDEST, 31)  # the Neoverse N1 has had a model since LLVM 17
_FEATURES = "+v8.2a,+dotprod,+fullfp16"
_ITERATIONS = 100
_SHARE = 0.999  # of the instructions: the rest is taken to be as fast as these

_WORD = 8  # hexadecimal digits of an instruction
_INSTRUCTION_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """What happened in a piece of the run.

    Attributes:
        ran: how often each block ran, by its number.
        fetched: lines, into each cache.
    """

    ran: Mapping[int, int]
    fetched: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Trace:
    """What count_instructions.c wrote between the last two calls of getpgid().

    Attributes:
        blocks: address and code, as words in hexadecimal, by number.
        pieces: of the run.
    """

    blocks: Mapping[int, tuple[int, str]]
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one inference.

    Attributes:
        cycles: in all.
        computing: if nothing had to be fetched.
        fetching: if nothing had to be computed.
        instructions: executed.
        tool: 'llvm-mca' and its version.
    """

    cycles: float
    computing: float
    fetching: float
    instructions: int
    tool: str


def find_tools() -> tuple[str, str]:
    """llvm-mca and llvm-mc, of the newest LLVM that is installed.

    Raises:
        InputError: there is none that has all models.
    """
    for version in reversed(_VERSIONS):
        names = f"llvm-mca-{version}", f"llvm-mc-{version}"
        if all(map(shutil.which, names)):
            return names
    raise InputError(
        f"An estimate of cycles needs llvm-mca of LLVM {_OLDEST} or newer: apt-get install -y "
        f"--no-install-recommends llvm-19. Received: no program llvm-mca-{_OLDEST} or higher"
    )


def read_trace(text: str) -> Trace:
    """Reads what the plugin wrote; see there."""
    blocks: dict[int, tuple[int, str]] = {}
    sections: list[list[Piece]] = [[]]
    ran: Counter[int] = Counter()
    for line in text.splitlines():
        kind, *values = line.split()
        if kind == "block":
            blocks[int(values[0])] = int(values[1], 16), values[2]
        elif kind == "ran":
            ran[int(values[0])] += int(values[1])
        elif kind == "fetched":
            sections[-1].append(Piece(ran, tuple(map(int, values))))
            ran = Counter()
        else:
            sections.append([])
    return Trace(blocks, tuple(sections[-2]))


def estimate(trace: Trace, cpu: Cpu, threads: int = 1) -> Estimate:
    """Cycles of the run.

    Args:
        trace: of one thread.
        cpu: that computed.
        threads: that would have shared the work, evenly; what they fetch comes from one memory.

    Raises:
        InputError: llvm-mca is not installed, or does not know the code.
    """
    total: Counter[int] = Counter()
    for piece in trace.pieces:
        total.update(piece.ran)
    each, tool = _find_cycles(trace.blocks, total, cpu)
    computing = [sum(times * each[number] for number, times in piece.ran.items()) / threads for piece in trace.pieces]
    fetching = [_fetching(piece, cpu) for piece in trace.pieces]
    slower = sum(map(max, computing, fetching))
    instructions = sum(times * _length(trace.blocks[number][1]) for number, times in total.items())
    return Estimate(slower, sum(computing), sum(fetching), instructions, tool)


def _find_cycles(
    blocks: Mapping[int, tuple[int, str]], total: Mapping[int, int], cpu: Cpu
) -> tuple[dict[int, float], str]:
    """Cycles of each block, by number, and what said so; a half of a block has none, its whole is the first half's."""
    whole = join_blocks(blocks, total)
    kept = _most_executed(whole, total)
    played, tool = _play([whole[number] for number in kept], cpu)
    cycles = dict(zip(kept, played, strict=True))
    of_one = sum(total[number] * cycles[number] for number in kept) / sum(
        total[number] * _length(whole[number]) for number in kept
    )
    rare = {number: of_one * _length(code) for number, code in whole.items() if number not in cycles}
    return dict.fromkeys(total, 0.0) | cycles | rare, tool


def _length(code: str) -> int:
    """Instructions."""
    return len(code) // _WORD


def _fetching(piece: Piece, cpu: Cpu) -> float:
    lines = zip(piece.fetched, cpu.bytes_per_cycle, strict=True)
    return sum(fetched * LINE_BYTES / each for fetched, each in lines)


def join_blocks(blocks: Mapping[int, tuple[int, str]], times: Mapping[int, int]) -> dict[int, str]:
    """QEMU ends a block where a page ends, in the middle of a loop: such halves are one again, by the first's number.

    Args:
        blocks: address and code, by number.
        times: how often each ran; halves ran equally often.

    Returns:
        The code of each whole block, by number.
    """
    starts = {(blocks[number][0], count): number for number, count in times.items()}

    def find_next(number: int) -> int | None:
        address, code = blocks[number]
        if _branches(code[-_WORD:]):
            return None
        return starts.get((address + _length(code) * _INSTRUCTION_BYTES, times[number]))

    second = {after for number in times if (after := find_next(number)) is not None}
    joined = {}
    for number in times:
        if number in second:
            continue
        last, joined[number] = number, blocks[number][1]
        while (after := find_next(last)) is not None:
            last = after
            joined[number] += blocks[after][1]
    return joined


def _branches(word: str) -> bool:
    """Whether an instruction is a branch: Arm Architecture Reference Manual for A-profile, C4.1."""
    code = int(word, 16)
    is_unconditional = (code >> 26) & 0b11111 == 0b00101
    is_conditional = code >> 25 in (0b0101010, 0b1101011)
    compares_or_tests = (code >> 26) & 0b11111 == 0b01101
    return is_unconditional or is_conditional or compares_or_tests


def _most_executed(whole: Mapping[int, str], times: Mapping[int, int]) -> list[int]:
    """Blocks that make up nearly all that was executed, the busiest first."""
    work = {number: times[number] * _length(code) for number, code in whole.items()}
    ordered, kept, done = sorted(work, key=lambda number: -work[number]), [], 0
    for number in ordered:
        kept.append(number)
        done += work[number]
        if done >= _SHARE * sum(work.values()):
            break
    return kept


def _play(codes: Sequence[str], cpu: Cpu) -> tuple[list[float], str]:
    """Cycles of each block, run over and over, and what said so."""
    mca, disassembler = find_tools()
    regions = (
        "\n".join([f"# LLVM-MCA-BEGIN block{number}", *lines, f"# LLVM-MCA-END block{number}"])
        for number, lines in enumerate(_disassemble(codes, disassembler))
    )
    options = [f"-mcpu={cpu.model}", f"-iterations={_ITERATIONS}", "-json"]
    found = json.loads(_call([mca, "-mtriple=aarch64", f"-mattr={_FEATURES}", *options], "\n".join(regions) + "\n"))
    summaries: list[dict[str, Any]] = [region["SummaryView"] for region in found["CodeRegions"]]
    return [summary["TotalCycles"] / summary["Iterations"] for summary in summaries], mca.replace("mca-", "mca ")


def _disassemble(codes: Sequence[str], disassembler: str) -> Iterator[list[str]]:
    """One line of assembly for each instruction of each block."""
    words = [re.findall(f".{{{_WORD}}}", code) for code in codes]
    # The plugin writes words as numbers, and memory has their lowest byte first.
    text = "\n".join(
        " ".join(f"0x{word[at : at + 2]}" for word in block for at in range(_WORD - 2, -1, -2)) for block in words
    )
    command = [disassembler, "--disassemble", "-triple=aarch64", f"-mattr={_FEATURES}"]
    lines = [line for line in _call(command, text).splitlines() if line.strip() and ".text" not in line]
    if len(lines) != sum(map(len, words)):
        raise InputError(f"{disassembler} must know every instruction that ran. Received: {len(lines)} of them")
    start = 0
    for block in words:
        yield lines[start : start + len(block)]
        start += len(block)


def _call(command: Sequence[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        said = say_why(done.stderr[-300:])
        raise failure_of(done.returncode, f"{command[0]} must take the code that ran. Received: {said}")
    return done.stdout
