"""What a report says of a microcontroller, in sentences: flash, RAM, instructions or cycles, and budgets."""

from typing import Any

from reflow_tf.report import nouns
from reflow_tf.report.document import Report
from reflow_tf.report.wording import SAME_SIZE, count, plural, significant, size

Footprint = dict[str, Any]
"""The `mcu` of a report."""


def sentences(report: Report) -> list[str]:
    """What the network takes there, and that it computes what it should; empty where the target is none."""
    mcu = report["mcu"]
    if mcu is None:
        return []
    found = [
        f"{mcu['runtime']}: {count(mcu['flash_bytes'])} bytes of flash ({_flash(mcu)}; unpruned "
        f"{count(mcu['dense_flash_bytes'])}), {count(mcu['arena_bytes'])} bytes of RAM (unpruned "
        f"{count(mcu['dense_arena_bytes'])})."
    ]
    if mcu["arena_beside_bytes"] is not None and mcu["arena_beside_bytes"] < mcu["arena_bytes"]:
        both = mcu["arena_beside_bytes"] + mcu["decode_bytes"]
        found.append(
            f"Weights are expanded in the arena; with {count(mcu['decode_bytes'])} bytes of other memory for that, an "
            f"arena of {count(mcu['arena_beside_bytes'])} bytes does ({count(both)} together)."
        )
    for board, work in mcu["instructions"].items():
        found.append(f"Cortex-{board.upper()}: {_worked(work, 'instructions', 'the same C, unpruned')}.")
    if "m55" in mcu["instructions"]:
        found.append("CMSIS-NN has vector kernels for the M55, which this C has not, and may need fewer.")
    if mcu["npu_cycles"]:
        work = _worked(mcu["npu_cycles"], "cycles", "unpruned")
        found.append(f"NPU: {work}. All of this is estimated, and nothing was run.")
    if mcu["num_compared"]:
        compared = plural(mcu["num_compared"], nouns.sample(report))
        equal = f"On {count(mcu['num_equal'])} of {compared} all outputs equal those of {_other(mcu)}, bit for bit."
        found.append(equal)
    return found


def kept(report: Report) -> list[str]:
    """The budgets that were kept, a sentence each."""
    return [
        f"{count(taken)} of the {count(budget)} bytes of {what} that --{flag} allows are taken."
        for what, flag, taken, budget, _ in _budgets(report)
        if taken <= budget
    ]


def differences(report: Report) -> list[str]:
    """That outputs differ which should be equal, bit for bit: at most one sentence."""
    mcu = report["mcu"]
    if mcu is None or mcu["num_equal"] == mcu["num_compared"]:
        return []
    others = mcu["num_compared"] - mcu["num_equal"]
    return [
        f"Do not ship this file: outputs of {plural(others, nouns.sample(report))} differ from those of {_other(mcu)}."
    ]


def misses(report: Report) -> list[str]:
    """The budgets that were missed, each with what takes most."""
    return [
        f"{count(taken)} bytes of {what} are needed; --{flag} allows {count(budget)}. The largest parts are "
        + ", ".join(f"{part['name']} ({size(part['size_bytes'])})" for part in largest)
        + "."
        for what, flag, taken, budget, largest in _budgets(report)
        if taken > budget
    ]


def sized(mcu: Footprint) -> str:
    """How much flash there is to it: 'in 2.9 times less flash'."""
    ratio = mcu["dense_flash_bytes"] / mcu["flash_bytes"]
    if abs(1 / ratio - 1) < SAME_SIZE:
        return "in as much flash as unpruned"
    if ratio > 1:
        return f"in {significant(ratio)} times less flash"
    return f"in {significant(1 / ratio, 3)} times as much flash as unpruned"


def work_unit(mcu: Footprint) -> str:
    """What the work of the layers is counted in."""
    return "estimated cycles" if mcu["npu_cycles"] else "estimated instructions"


def _other(mcu: Footprint) -> str:
    """What the file was compared with."""
    return "TFLM" if mcu["instructions"] else "the same weights stored dense"


def _flash(mcu: Footprint) -> str:
    """What is counted as flash."""
    if mcu["instructions"]:
        return "code and constants of the network"
    return "the compiled network" if mcu["npu_cycles"] else "the file, without TFLM's own code"


def _worked(work: dict[str, int], unit: str, baseline: str) -> str:
    ratio = significant(work["file"] / work["dense"]) if work["dense"] else "0"
    return f"{count(work['file'])} {unit} ({baseline}: {count(work['dense'])}; {ratio} times)"


def _budgets(report: Report) -> list[tuple[str, str, int, int, list[dict[str, Any]]]]:
    """(flash or RAM, the flag, bytes that are taken, bytes that may be, what takes most), of those that were given."""
    mcu = report["mcu"]
    if mcu is None:
        return []
    # A budget that chose the sparsity has a sentence of its own: limits.budget_sentence.
    spoken_of = report["budget"]["name"] if report["budget"] else None
    return [
        (what, flag, mcu[taken], mcu[flag], mcu[largest])
        for what, flag, taken, largest in (
            ("flash", "flash_budget", "flash_bytes", "flash_largest"),
            ("RAM", "ram_budget", "arena_bytes", "ram_largest"),
        )
        if mcu[flag] is not None and flag != spoken_of
    ]
