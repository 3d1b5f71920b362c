from reflow_tf.report import device

from .sample import MCU


def _plain(sentences):
    return [sentence.replace("\u00a0", " ") for sentence in sentences]


def test_nothing_is_said_where_the_target_is_no_microcontroller(make_report):
    report = make_report()
    assert device.sentences(report) == device.kept(report) == device.misses(report) == []


def test_flash_and_ram_in_tflm(make_report):
    assert _plain(device.sentences(make_report(mcu=MCU))) == [
        "TFLM 1.0: 388,944 bytes of flash (the file, without TFLM's own code; unpruned 993,976), 306,912 bytes of RAM "
        "(unpruned 155,440).",
        "Weights are expanded in the arena; with 204,800 bytes of other memory for that, an arena of 161,904 bytes "
        "does (366,704 together).",
        "On 256 of 256 images all outputs equal those of the same weights stored dense, bit for bit.",
    ]


def test_other_memory_is_offered_only_where_the_arena_gets_smaller(make_report):
    told = device.sentences(make_report(mcu=MCU | {"arena_beside_bytes": MCU["arena_bytes"] + 16}))
    assert not any("other memory" in sentence for sentence in told)


def test_instructions_have_the_same_c_unpruned_beside_them_and_the_m55_a_warning(make_report):
    boards = {"m4": {"dense": 100, "file": 45}, "m55": {"dense": 80, "file": 60}}
    told = device.sentences(make_report(mcu=MCU | {"instructions": boards, "arena_beside_bytes": None}))
    assert told[1:4] == [
        "Cortex-M4: 45 instructions (the same C, unpruned: 100; 0.45 times).",
        "Cortex-M55: 60 instructions (the same C, unpruned: 80; 0.75 times).",
        "CMSIS-NN has vector kernels for the M55, which this C has not, and may need fewer.",
    ]
    assert "code and constants of the network" in told[0] and "equal those of TFLM" in told[4]


def test_budgets_that_were_missed_and_kept(make_report):
    missed = make_report(mcu=MCU)
    assert _plain(device.misses(missed)) == [
        "388,944 bytes of flash are needed; --flash_budget allows 300,000. The largest parts are Conv_1/weights "
        "(38.8 kB), block_16/weights (15.5 kB)."
    ]
    kept = make_report(mcu=MCU | {"flash_budget": None, "ram_budget": 306_912})
    assert device.misses(kept) == []
    assert device.kept(kept) == ["306,912 of the 306,912 bytes of RAM that --ram_budget allows are taken."]


def test_a_budget_that_chose_the_sparsity_is_told_of_once(make_report):
    budget = {"name": "flash_budget", "value": 300_000.0, "estimate": 1.0, "measured": 388_944, "passed": False}
    report = make_report(mcu=MCU, budget=budget)
    assert not any("flash" in sentence for sentence in device.misses(report) + device.kept(report))


def test_flash_in_comparison():
    same = MCU | {"dense_flash_bytes": MCU["flash_bytes"]}
    assert device.sized(same) == "in as much flash as unpruned"
    assert (
        device.sized(same | {"dense_flash_bytes": MCU["flash_bytes"] // 2}) == "in 2.00 times as much flash as unpruned"
    )
