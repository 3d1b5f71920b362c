"""Estimates of cycles: what the emulator writes is read, blocks are whole, and closed forms hold."""

import subprocess

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.aarch64 import cycles
from reflow_tf.runtimes.aarch64.cpus import CPUS, LINE_BYTES
from reflow_tf.runtimes.aarch64.cycles import Piece, Trace, estimate, join_blocks, read_trace
from reflow_tf.runtimes.aarch64.machine import find_machine
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.litert import LiteRT

A76, A72 = CPUS["cortex-a76"], CPUS["cortex-a72"]

FMLA = [f"4e21cc{lane:02x}" for lane in range(4, 12)]  # fmla vN.4s, v0.4s, v1.4s, N from 4: independent sums
LOOP = "54ffff01"  # b.ne back
RETURN = "d65f03c0"


def trace_of(code, times=1000, fetched=(0, 0, 0)):
    return Trace({1: (0x1000, "".join(code))}, (Piece({1: times}, fetched),))


def test_what_the_plugin_writes_is_read():
    text = "fetched 0 0\n100\nblock 1 1000 d65f03c0\nran 1 5\nfetched 1 2\nran 1 2\nfetched 3 0\n200\n"
    found = read_trace(text)
    assert found.blocks == {1: (0x1000, RETURN)}
    assert found.pieces == (Piece({1: 5}, (1, 2)), Piece({1: 2}, (3, 0)))


def test_halves_of_a_loop_are_one_again():
    """A page ends at 0x2000; what jumps does not go on, and neither does what ran another number of times."""
    first, second = "".join(FMLA[:4]), FMLA[4] + LOOP
    blocks = {1: (0x1FF0, first), 2: (0x2000, second), 3: (0x2008, RETURN), 4: (0x3000, RETURN), 5: (0x3004, RETURN)}
    assert join_blocks(blocks, {1: 7, 2: 7, 3: 7, 4: 1, 5: 1}) == {
        1: first + second,
        3: RETURN,
        4: RETURN,
        5: RETURN,
    }
    assert join_blocks(blocks, {1: 7, 2: 8}) == {1: first, 2: second}
    assert join_blocks({1: (0, FMLA[0]), 2: (4, FMLA[1]), 3: (8, RETURN)}, {3: 2, 2: 2, 1: 2}) == {
        1: FMLA[0] + FMLA[1] + RETURN
    }


@pytest.mark.parametrize(
    "word, branches",
    [
        *((word, True) for word in ("14000001", "94000001", LOOP, "b4000400", "36000000", RETURN, "d63f0100")),
        *((word, False) for word in ("d4000001", FMLA[0], "f9405661", "d503201f")),  # svc, fmla, ldr, nop
    ],
)
def test_branches(word, branches):
    assert cycles._branches(word) == branches


@pytest.mark.parametrize("cpu, each", [(A76, 0.5), (A72, 1.0)], ids=["a76", "a72"])
def test_multiplications_take_what_the_optimization_guides_say(llvm, cpu, each):
    """Two pipelines of 128 bits in the A76, two of 64 in the A72."""
    found = estimate(trace_of([*FMLA, LOOP], fetched=(0,) * len(cpu.caches)), cpu)
    assert found.computing == pytest.approx(1000 * len(FMLA) * each, rel=0.1)
    assert (found.fetching, found.instructions) == (0, 1000 * (len(FMLA) + 1))
    assert found.cycles == found.computing and found.tool.startswith("llvm-mca ")


def test_a_piece_takes_what_is_slower(llvm):
    lines = 10_000
    fetching = lines * LINE_BYTES / (A72.memory_gigabytes / 2 / A72.gigahertz)
    code, idle = "".join([*FMLA, LOOP]), (0, 0)
    pieces = (Piece({1: 1000}, (0, lines)), Piece({1: 1000}, idle))
    found = estimate(Trace({1: (0, code)}, pieces), A72)
    assert found.fetching == pytest.approx(fetching)
    assert found.cycles == pytest.approx(fetching + found.computing / 2)


def test_what_is_rare_is_as_fast_as_the_rest(llvm):
    blocks = {1: (0, "".join([*FMLA, LOOP])), 2: (0x8000, RETURN)}
    alone = estimate(Trace({1: blocks[1]}, (Piece({1: 10_000}, (0, 0)),)), A72)
    both = estimate(Trace(blocks, (Piece({1: 10_000, 2: 9}, (0, 0)),)), A72)
    assert both.cycles == pytest.approx(alone.cycles * both.instructions / alone.instructions)


def test_without_llvm_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"apt-get install -y --no-install-recommends llvm-19\. Received: no program"):
        cycles.find_tools()


@pytest.mark.slow
def test_the_caches_fetch_what_a_sweep_over_memory_touches(aarch64, tmp_path):
    """A buffer of 4 MiB, twice: nothing of it is left for the second time; one of 16 KiB is fetched once."""
    code = """
import os
large, small = bytearray(1 << 22), bytearray(1 << 14)
def sweep(buffer):
    os.getpgid(0)
    buffer.count(1); buffer.count(1)
sweep(large); sweep(small); sweep(small); os.getpgid(0)
"""
    find_machine("cortex-a72").python(["-c", code], tmp_path, tmp_path / "seen", watches=True)
    sections = (tmp_path / "seen").read_text().split("\n")
    totals, now = [], np.zeros(2, int)
    for line in sections:
        if line.startswith("fetched"):
            now = now + np.array(line.split()[1:], int)
        elif line.isdigit():
            totals.append(now)
            now = np.zeros(2, int)
    _, large, _, small = totals
    assert large == pytest.approx(2 * (1 << 22) / LINE_BYTES, rel=0.05)
    assert small[1] < 200


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 16), batch_size=1)
    x = layers.Conv2D(128, 1, activation="relu")(image)
    x = layers.Conv2D(128, 1, activation="relu")(x)
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    sample = np.random.default_rng(0).standard_normal((8, 32, 32, 16)).astype(np.float32)
    kinds = {"float32": "none", "int8": "int8"}
    return {name: export_tflite(model, quantize=kind, calibration=[sample]).content for name, kind in kinds.items()}


@pytest.mark.slow
@pytest.mark.parametrize("cpu, each", [("cortex-a76", 8), ("cortex-a72", 4)])
def test_float32_convolutions_are_near_the_peak_of_the_core(aarch64, llvm, network, cpu, each):
    """Multiply-adds of one cycle, at most: XNNPACK's kernels were written to come close."""
    macs = 32 * 32 * (16 * 128 + 128 * 128)
    found = AArch64(network["float32"], cpu=cpu).estimate()
    assert macs / each < found.cycles < 1.6 * macs / each
    assert found.instructions == pytest.approx(AArch64(network["float32"], cpu=cpu).measure(), rel=0.02)


@pytest.mark.slow
def test_int8_is_faster_on_an_old_core_than_its_instructions_say(aarch64, llvm, network):
    found = {name: AArch64(content, cpu="cortex-a72").estimate() for name, content in network.items()}
    assert found["int8"].cycles < 0.75 * found["float32"].cycles
    assert found["int8"].instructions > 0.8 * found["float32"].instructions


@pytest.mark.slow
def test_every_cpu_is_taken_for_itself_and_computes_the_same(aarch64, network):
    """XNNPACK has kernels of its own for the in-order core: more instructions, of a kind that it runs in pairs."""
    counts = {name: AArch64(network["float32"], cpu=name).measure() for name in CPUS}
    assert counts["cortex-a53"] > 1.3 * counts["cortex-a72"]
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 16)).astype(np.float32)
    expected = LiteRT(network["float32"]).run(images)
    for name in CPUS:
        np.testing.assert_allclose(AArch64(network["float32"], cpu=name).run(images), expected, rtol=1e-4, atol=1e-5)


def test_the_plugin_refuses_what_it_does_not_understand(aarch64, tmp_path):
    library = find_machine()._folder / "count_instructions.so"
    done = subprocess.run(
        ["qemu-aarch64", "-plugin", f"{library},cache=big", "-d", "plugin", "/bin/true"], capture_output=True, text=True
    )
    assert done.returncode and "not understood: cache=big" in done.stderr
