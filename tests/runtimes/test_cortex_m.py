import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.runtimes import installation
from reflow_tf.runtimes.cortex_m import emulator, toolchain
from reflow_tf.runtimes.cortex_m.boards import BOARDS
from reflow_tf.runtimes.cortex_m.runtime import CortexM, End

IDENTITY = "for (int i = 0; i < 16; ++i) output[i] = input[i];"

pytestmark = pytest.mark.usefixtures("cortex_m")


def build(body, before="", board="m4", **arguments):
    """A model from 16 bytes to 16 bytes, whose function has this body."""
    header = "#define REFLOW_INPUT_BYTES 16\n#define REFLOW_OUTPUT_BYTES 16\n"
    source = f"#include <stdint.h>\n#include <string.h>\n{before}\n"
    source += f"void reflow_invoke(const int8_t *input, int8_t *output) {{ {body} }}\n"
    files = {"model.h": header, "inner/model.c": source}
    ends = {"inputs": [End((1, 4, 4), (0.5, -3))], "outputs": [End((1, 16), (0.25, 7))]}
    return CortexM(files, **(ends | {"board": board} | arguments))


def samples(count=5):
    return np.random.default_rng(0).integers(-128, 128, (count, 4, 4)).astype(np.int8)


@pytest.mark.parametrize("board", BOARDS)
def test_bytes_go_in_and_come_out(board):
    """Initial values, zeros and floating point are there, too: the start-up has done its work."""
    before = "static int8_t ones[4] = {1, 1, 1, 1}, sums[4]; static volatile float half = 0.5f;"
    body = f"{IDENTITY} output[3] = ones[3] + sums[2]; output[4] = (int8_t)(half * 9); sums[2] += 2;"
    outputs = build(body, before, board).run_int8(samples())
    expected = samples().reshape(5, 16)
    expected[:, 3], expected[:, 4] = [1, 3, 5, 7, 9], 4
    assert outputs.dtype == np.int8
    np.testing.assert_array_equal(outputs, expected)


def test_floats_go_through_scale_and_zero_point():
    batch = np.linspace(-70, 70, 32).reshape(2, 4, 4).astype(np.float32)
    expected = (np.clip(np.rint(batch / 0.5) - 3, -128, 127) - 7) * 0.25
    np.testing.assert_array_equal(build(IDENTITY).run(batch), expected.reshape(2, 16).astype(np.float32))


@pytest.mark.parametrize("board", BOARDS)
def test_a_count_is_of_the_function_alone_and_exact(board):
    counts = [
        build(f'__asm__ volatile("movs r3, {n}\\n1: subs r3, r3, 1\\n\\tbne 1b" ::: "r3", "cc");', "", board).measure()
        for n in (1, 2, 100)
    ]
    assert counts == [4, 6, 202]  # the move, two for each turn, the return


def test_a_profile_names_functions_and_adds_up():
    before = """
__attribute__((noinline)) static void five(void) { __asm__ volatile("nop\\n\\tnop\\n\\tnop\\n\\tnop"); }
"""
    runtime = build("five(); five(); volatile int n = 16; memcpy(output, input, n);", before)
    profile = runtime.profile()
    assert profile["five"] == 10
    assert set(profile) == {"reflow_invoke", "five", "memcpy"}
    assert runtime.measure() == sum(profile.values())
    assert list(profile.values()) == sorted(profile.values(), reverse=True)


def test_another_process_counts_the_same():
    body = (
        "for (int turn = 0; turn < 100; ++turn) for (int i = 0; i < 16; ++i) output[i] += input[15 - i] >> (turn & 3);"
    )
    first, second = build(body), build(body)
    assert first.measure() == second.measure() == first.measure() > 1600
    assert (first.unit, first.profile()) == ("instructions", second.profile())


def test_the_optimisation_is_the_compilers():
    assert build(IDENTITY, optimisation="-Os").measure() > build(IDENTITY, optimisation="-O3").measure()


def test_each_sample_has_its_own_count():
    image = build("for (volatile int i = input[0]; i; --i) {}")._image
    rows = np.zeros((4, 16), np.int8)
    rows[:, 0] = [0, 1, 2, 0]
    counts = [sum(profile.values()) for profile in emulator.execute(image, rows, 16, count=True).profiles]
    assert counts[0] == counts[3]
    assert counts[1] - counts[0] == counts[2] - counts[1] > 0


def test_a_model_is_weighed_without_what_is_around_it():
    table = "static const int8_t table[1000] = {1}; static int8_t values[40] = {2}, room[500];"
    body = "output[0] = ((volatile const int8_t *)table)[input[0] & 63]; "
    body += "((volatile int8_t *)room)[3] = ((volatile int8_t *)values)[1]++;"
    small, large = build("output[0] = 1;").sizes, build(body, table + "const int8_t unused[9999] = {1};").sizes
    assert small.ram_bytes == 0
    assert 0 < small.flash_bytes <= 8
    assert 1040 < large.flash_bytes < 1100
    assert 540 <= large.ram_bytes < 560
    for sizes in (small, large):
        assert 500 < sizes.image_flash_bytes - sizes.flash_bytes < 4000
        assert 32 <= sizes.image_ram_bytes - sizes.ram_bytes < 100


def test_memory_and_the_stack():
    local = "volatile int8_t local[4000]; for (int i = 0; i < 4000; ++i) local[i] = i; output[0] = local[input[0] & 7];"
    runtime = build(local, "static volatile int8_t room[600];")
    assert runtime.memory_bytes() == 0
    assert 4000 < runtime.stack_bytes() < 4150
    assert build("output[0] = 1;").stack_bytes() <= 80


ABSENT = "no memory there, or written to flash at 0x{} pc [^ ]* .reflow_invoke. "
FAULTS = {
    "output[0] = *(volatile int8_t *)0x50000000;": ABSENT.format(50000000),
    "*(volatile int8_t *)0x1ffffffe = 1;": ABSENT.format("1ffffffe"),
    "*(volatile uint32_t *)(uintptr_t)reflow_invoke ^= 1;": ABSENT.format("[0-9a-f]{8}"),
    '__asm__ volatile("udf #0");': r"undefined instruction pc \S+ \(reflow_invoke\)",
    "((void (*)(void))0x50000001)();": r"no code there pc 0x50000000 lr \S+ \(count_one\)",
    "volatile int8_t deep[300000]; for (int i = 299999; i >= 0; --i) deep[i] = i;": "stack overflow at",
}


@pytest.mark.parametrize("board", ["m3", "m4", "m7", "m55"])
@pytest.mark.parametrize("body", FAULTS)
def test_a_fault_says_what_it_was(body, board):
    with pytest.raises(InputError, match=rf"must come to its end on mps\d-an\d+ .*fault: {FAULTS[body]}"):
        build(body, "", board).run_int8(samples())


def test_a_program_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(emulator, "_STARTING_SECONDS", 1)
    monkeypatch.setattr(emulator, "_SECONDS_PER_SAMPLE", 0)
    with pytest.raises(InputError, match="Received: nothing after 1 seconds for 5 samples"):
        build("for (;;) {}").run_int8(samples())


def test_it_says_what_it_is():
    runtime = build(IDENTITY, board="m55", optimisation="-O2")
    assert runtime.name.startswith("C, GCC ")
    assert " -O2, QEMU " in runtime.name
    assert runtime.name.endswith(" as mps3-an547 (cortex-m55)")
    assert (runtime.input_shape, runtime.output_shape) == ((1, 4, 4), (1, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"board": "m0"}, r"one of m3, m4, m7, m55\. Received: m0"),
        ({"optimisation": "-Ofast"}, r"-O3, -O2, -Os\. Received: -Ofast"),
        ({"inputs": [End((2, 4, 4), (0.5, -3))]}, r"batches of 1\. Received: \[\(2, 4, 4\)"),
        ({"inputs": [End((1, 5), (0.5, -3))]}, r"Compiling main\.c failed.*REFLOW_INPUT_BYTES differs"),
        ({"body": "no C"}, r"Compiling inner/model\.c failed: .*error: "),
        ({"body": "absent();", "before": "void absent(void);"}, "Linking failed.*undefined reference to `absent'"),
        ({"body": "room[*input] = 1;", "before": "volatile int8_t room[5 << 20];"}, "region `RAM' overflowed"),
    ],
)
def test_bad_sources(arguments, message):
    with pytest.raises(InputError, match=message):
        build(**({"body": IDENTITY} | arguments))


@pytest.mark.parametrize(("files", "message"), [({}, "none"), ({"model.h": "", "../x.c": ""}, r"Received: \.\./x\.c")])
def test_bad_names(files, message):
    with pytest.raises(InputError, match=message):
        CortexM(files, [End((1, 1), (1.0, 0))], [End((1, 1), (1.0, 0))])


def test_bad_samples():
    runtime = build(IDENTITY)
    with pytest.raises(InputError, match=r"\(n, 4, 4\).*Received: \(1, 16\)"):
        runtime.run(np.zeros((1, 16), np.float32))
    with pytest.raises(InputError, match=r"must be int8\. Received: float32"):
        runtime.run_int8(np.zeros((1, 4, 4), np.float32))


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        packages = "gcc libc6-dev gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
        with pytest.raises(InputError, match=f"apt-get install -y --no-install-recommends {packages}"):
            build(IDENTITY)
    monkeypatch.setattr(toolchain, "_NEWLIB", "absent.specs")
    with pytest.raises(InputError, match=r"libnewlib-arm-none-eabi\. Received: an arm-none-eabi-gcc without absent"):
        build(IDENTITY)


def test_boards_are_such_as_qemu_has():
    machines = installation.call(["qemu-system-arm", "-M", "help"], "Listing boards")
    for board in BOARDS.values():
        assert board.machine in machines
