import dataclasses

import numpy as np
import pytest

from reflow_tf.choices import CPUS, TARGETS
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.runtimes.aarch64 import cpus
from reflow_tf.sparsity.patterns import NM, Block, Channel, Unstructured
from reflow_tf.targets.xnnpack import XNNPack


def test_defaults():
    config = PruneConfig()
    assert (config.requested_sparsity, config.requested_pattern, config.requested_repair, config.target) == (
        0.7,
        Unstructured(),
        "reflow",
        "xnnpack",
    )


def test_existing_zeros_are_taken_as_they_are():
    config = PruneConfig(sparsity="existing", device="arm")
    asked = config.requested_sparsity, config.requested_pattern, config.requested_repair, config.turns_streams
    assert asked == (0.0, Unstructured(), "none", False)
    assert config.hardware.rows == 1
    assert PruneConfig(sparsity="existing", pattern=Block(2, 1), device="arm").hardware.rows == 2
    assert PruneConfig(sparsity="existing", repair="reflow").requested_repair == "reflow"


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ({"allocation": "erk", "criterion": "fisher"}, "--criterion=fisher --allocation=erk"),
        ({"max_macs": 0.5}, "--max_macs=0.5"),
        ({"max_macs": 0.7, "pattern": Channel()}, "--max_macs=0.7"),
        ({"max_macs": "auto", "pattern": Unstructured()}, "--max_macs=auto"),
        ({"pattern": NM(2, 4)}, "--pattern=nm:2,4"),
        ({"repair": "obs,chita"}, "--repair=obs,chita"),
    ],
)
def test_nothing_else_chooses_zeros_beside_existing_ones(given, received):
    with pytest.raises(InputError, match=r"takes the zeros that are there: nothing else chooses any\. ") as error:
        PruneConfig(sparsity="existing", **given)
    assert str(error.value).endswith(f"Received: {received}")


def test_a_sparsity_is_a_number_or_a_known_word():
    with pytest.raises(InputError, match=r"--sparsity must be a number, or existing\. Received: extant"):
        PruneConfig(sparsity="extant")


@pytest.mark.parametrize("sparsity", ["extant", [0.5], True, float("nan"), 1.5])
@pytest.mark.parametrize("others", [{}, {"max_macs": 0.7, "pattern": Channel()}, {"pattern": NM(2, 4)}])
def test_no_check_of_anything_else_stumbles_over_a_sparsity_that_is_none(sparsity, others):
    with pytest.raises(InputError, match=r"sparsity .*must be .*Received: "):
        PruneConfig(sparsity=sparsity, **others)


def test_an_n_m_pattern_brings_its_sparsity():
    assert PruneConfig(pattern=NM(1, 4)).requested_sparsity == 0.75
    assert PruneConfig(pattern=NM(1, 3), sparsity=1 - 1 / 3).requested_sparsity == pytest.approx(2 / 3)
    with pytest.raises(InputError, match=r"sparsity 0.5 and no other.*Received: --sparsity=0.6"):
        PruneConfig(pattern=NM(2, 4), sparsity=0.6)


@pytest.mark.parametrize(
    ("budgets", "received"),
    [
        ({"sparsity": 0.7, "min_speedup": 2.0}, "--sparsity=0.7 --min_speedup=2.0"),
        ({"sparsity": 0.0, "max_size_bytes": 1_000_000}, "--sparsity=0.0 --max_size_bytes=1000000"),
        ({"max_size_bytes": 5, "min_speedup": 1.5}, "--max_size_bytes=5 --min_speedup=1.5"),
    ],
)
def test_one_budget_at_most(budgets, received):
    with pytest.raises(InputError, match=r"At most one of --sparsity, --max_size_bytes and --min_speedup .+") as error:
        PruneConfig(**budgets)
    assert str(error.value).endswith(f"Received: {received}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_size_bytes": 0}, "--max_size_bytes must be at least 1. Received: 0"),
        ({"min_speedup": 1.0}, "--min_speedup must be a number over 1. Received: 1.0"),
        ({"min_speedup": float("nan")}, "--min_speedup must be a number over 1. Received: nan"),
        ({"min_speedup": float("inf")}, "--min_speedup must be a number over 1. Received: inf"),
        ({"min_speedup": 2.0, "target": "storage"}, r"--target=storage does not. Received: --min_speedup=2"),
        ({"min_speedup": 2.0, "pattern": NM(2, 4)}, r"has sparsity 0.5 and no other: leave --min_speedup out. .+=2"),
        ({"max_size_bytes": 7, "pattern": NM(2, 4)}, r"no other: leave --max_size_bytes out. Received: .+=7"),
    ],
)
def test_no_budget(config, message):
    with pytest.raises(InputError, match=message):
        PruneConfig(**config)


def test_what_the_budget_is():
    assert PruneConfig().budget is None and PruneConfig(sparsity=0.5).budget is None
    assert PruneConfig(max_size_bytes=10).budget == ("max_size_bytes", 10)
    assert PruneConfig(min_speedup=1.5).budget == ("min_speedup", 1.5)


def test_no_sparsity_is_a_sparsity():
    assert PruneConfig(sparsity=0.0, pattern=Channel()).requested_sparsity == 0.0


def test_the_default_criterion_is_that_of_what_leaves():
    assert PruneConfig(sparsity=0.5).requested_criterion == "magnitude"
    assert PruneConfig(max_macs=0.7, pattern=Channel()).requested_criterion == "elimination"
    assert PruneConfig(max_macs=0.7, pattern=Channel(), criterion="activation").requested_criterion == "activation"
    both = PruneConfig(max_macs=0.7, sparsity=0.5, criterion="activation").stages
    assert [stage.requested_criterion for stage in both] == ["elimination", "activation"]


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan"), float("inf"), True])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(InputError, match=r"must be in \[0, 1\). Received: "):
        PruneConfig(sparsity=sparsity)


@pytest.mark.parametrize("name", ["criterion", "allocation", "target", "repair"])
def test_choices_of_pruning(name):
    with pytest.raises(InputError, match=rf"--{name} must be one of .+. Received: magic"):
        PruneConfig(**{name: "magic"})


def test_a_chain_of_repairs():
    assert PruneConfig(repair="least_squares,reflow").repairs == ("least_squares", "reflow")


@pytest.mark.parametrize(
    "repair, message",
    [
        ("reflow,magic", r"--repair must be one of none, .+, auto. Received: magic"),
        ("obs,", r"--repair must be one of .+. Received: $"),
        ("reflow,none", r"--repair=none stands alone. Received: reflow,none"),
        ("auto,reflow", r"--repair=auto stands alone. Received: auto,reflow"),
        ("obs,reflow,obs", r"name each repair once. Received: obs,reflow,obs"),
    ],
)
def test_no_chain_of_repairs(repair, message):
    with pytest.raises(InputError, match=message):
        PruneConfig(repair=repair)


def test_a_pattern_is_no_text():
    with pytest.raises(InputError, match=r"parse\(.+. Received: 'nm:2,4'"):
        PruneConfig(pattern="nm:2,4")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"repair": ("least_squares", "reflow")}, r"--repair must be names of repairs, joined by commas"),
        ({"target": {}}, r"--target must be one of .+\. Received: \{\}"),
        ({"memory_budget": "1G"}, r"--memory_budget must be at least 1\. Received: '1G', which is no number"),
        ({"max_size_bytes": "100k"}, r"--max_size_bytes must be at least 1\. Received: '100k', which is no number"),
        ({"min_speedup": "2"}, r"--min_speedup must be a number over 1\. Received: 2"),
        ({"max_macs": [0.5], "pattern": Channel()}, r"--max_macs is a share .+\. Received: \[0.5\]"),
        ({"channel_multiple": 2.5}, r"--channel_multiple must be a whole number, at least 1\. Received: 2.5"),
        ({"pattern": Channel}, r"A pattern is one of .+\. Received: <class .+Channel"),
        ({"prunable": None}, r"--prunable must be target, all or a regular expression\. Received: None"),
        ({"sparsity": "0.5"}, r"--sparsity must be a number, or existing\. Received: 0.5"),
    ],
)
def test_what_is_no_number_or_no_name_is_told_at_once(given, message):
    with pytest.raises(InputError, match=message):
        PruneConfig(**given)


def test_numbers_of_numpy_are_numbers():
    assert PruneConfig(sparsity=np.float32(0.5), channel_multiple=np.int64(4)).requested_sparsity == 0.5


def test_all_stages_are_checked_at_once():
    with pytest.raises(InputError, match=r"sparsity 0.5 and no other: leave --max_size_bytes out"):
        PruneConfig(pattern=NM(2, 4), max_macs="auto", max_size_bytes=10_000, target="storage")


STORED = PruneConfig(target="storage")


def test_channels_leave_for_a_size_of_any_targets_file():
    config = PruneConfig(max_macs="auto", max_size_bytes=1000, pattern=Channel(), target="cpu")
    assert config.budget is None and JobConfig("m", "out", prune=config).prune is config


def test_widths_are_multiples_of_what_the_target_wants_unless_the_user_says():
    wanted = {"xnnpack": 8, "cpu": 8, "storage": 8, "ethos_u": 8, "cortex_m": 4, "tflm": 4}
    assert {name: PruneConfig(target=name).requested_channel_multiple for name in TARGETS} == wanted
    assert PruneConfig(target="tflm", channel_multiple=16).requested_channel_multiple == 16
    narrow = PruneConfig(target="tflm", pattern=Channel(), max_macs=0.7)
    assert narrow.without_hardware.requested_channel_multiple == 4


def test_stages():
    assert PruneConfig(sparsity=0.5).stages == (PruneConfig(sparsity=0.5),)
    narrow = PruneConfig(max_macs=0.7, pattern=Channel())
    assert narrow.stages == (narrow,) and not narrow.sets_zeros
    both = PruneConfig(max_macs=0.7, sparsity=0.5, pattern=Block(2, 1), allocation="erk", criterion="activation")
    first, then = both.stages
    assert first == narrow
    assert then == PruneConfig(sparsity=0.5, pattern=Block(2, 1), allocation="erk", criterion="activation")
    assert len(PruneConfig(max_macs=0.7, pattern=NM(2, 4)).stages) == 2
    for prunable, of_channels in (("all", "target"), ("block_5", "block_5")):
        stages = PruneConfig(max_macs=0.7, sparsity=0.5, prunable=prunable).stages
        assert [stage.prunable for stage in stages] == [of_channels, prunable]


def test_what_an_int8_file_takes_is_up_to_the_target():
    assert JobConfig("m", "o", PruneConfig(target="cpu")).requested_io == "float"
    assert JobConfig("m", "o", PruneConfig(target="cpu"), io="int8").requested_io == "int8"
    assert JobConfig("m", "o", PruneConfig(target="tflm")).requested_io == "int8"


def test_cpus_are_those_that_can_be_emulated():
    assert (tuple(cpus.CPUS), cpus.DEFAULT_CPU) == (CPUS, CPUS[-1])


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"quantize": "int4"}, "--quantize must be one of none, float16, int8. Received: int4"),
        ({"rewrite": "wild"}, "--rewrite must be one of exact, none. Received: wild"),
        ({"benchmark": ("web", "moon")}, "--benchmark must be one of web, aarch64. Received: moon"),
        (
            {"quantize": "int8"},
            "--quantize must suit --target=xnnpack: XNNPACK has sparse kernels for float32 and float16 alone, so zeros "
            "in int8 gain nothing there; --target=cpu makes int8 files. Received: int8",
        ),
        ({"cpu": "cortex-m4"}, "--cpu must be one of cortex-a53, cortex-a72, cortex-a76. Received: cortex-m4"),
        (
            {"prune": PruneConfig(max_macs="auto", pattern=Channel(), target="tflm")},
            "--max_macs=auto removes channels until a budget is met: give --max_size_bytes or, for a "
            "microcontroller, --flash_budget or --ram_budget. Received: none, with --target=tflm",
        ),
        (
            {"io": "float"},
            "--io says what an int8 file takes and gives: it needs --quantize=int8. Received: --io=float "
            "--quantize=none",
        ),
        ({"quantize": "int8", "io": "int4", "prune": STORED}, "--io must be one of int8, float. Received: int4"),
        (
            {"io": "float", "prune": PruneConfig(target="tflm")},
            "--io must be int8 for --target=tflm, which has no floats. Received: --io=float",
        ),
        ({"calibration_samples": 0}, "--calibration_samples must be at least 1. Received: 0"),
        ({"batch_size": 0}, "--batch_size must be at least 1. Received: 0"),
        ({"export_batch_size": -1}, "--export_batch_size must be from 1 to 65536. Received: -1"),
        ({"image_size": 0}, "--image_size must be at least 1. Received: 0"),
        ({"seed": -1}, "--seed must be from 0 to 4294967295. Received: -1"),
        ({"seed": 2**32}, "--seed must be from 0 to 4294967295. Received: 4294967296"),
        ({"max_accuracy_drop": -0.5}, "--max_accuracy_drop must be from 0 to 100. Received: -0.5"),
        ({"max_accuracy_drop": float("inf")}, "--max_accuracy_drop must be from 0 to 100. Received: inf"),
        ({"max_accuracy_drop": float("nan")}, "--max_accuracy_drop must be from 0 to 100. Received: nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_limits_of_a_job(flags, message):
    with pytest.raises(InputError) as caught:
        JobConfig("model", "out", **flags)
    assert str(caught.value) == message


def test_the_target_says_how_the_file_is_rewritten_unless_the_user_does():
    assert JobConfig("model", "out").requested_rewrite == "exact"
    assert JobConfig("model", "out", rewrite="none").requested_rewrite == "none"
    storage = PruneConfig(target="storage")
    assert JobConfig("model", "out", storage, quantize="int8").requested_rewrite == "none"
    assert JobConfig("model", "out", storage, rewrite="exact").requested_rewrite == "exact"


def test_the_largest_seed_and_the_widest_gate_are_allowed():
    JobConfig("model", "out", seed=2**32 - 1, max_accuracy_drop=100)


@pytest.mark.parametrize("flags", [{"batch_size": 0}, {"image_size": -3}])
def test_limits_of_an_evaluation(flags):
    with pytest.raises(InputError, match=r"must be at least 1\. Received: "):
        EvaluateConfig("model", "data", **flags)


def test_configurations_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PruneConfig().sparsity = 0.5


@pytest.mark.parametrize(
    ("pattern", "rows"), [(Unstructured(), 1), (Block(2, 1), 2), (Block(4, 1), 4), (Block(8, 2), 4), (Block(3, 1), 1)]
)
def test_the_target_is_set_as_the_configuration_says(pattern, rows):
    config = PruneConfig(device="arm", ballast="off", pattern=pattern)
    assert config.hardware == XNNPack(device="arm", ballast=False, rows=rows)
    assert PruneConfig(pattern=pattern).hardware == XNNPack(rows=rows)
    assert PruneConfig(target="tflm").hardware is TARGETS["tflm"]


def test_ballast_is_a_rewrite():
    assert JobConfig("model", "out").target.ballast_for == ("browser", "arm")
    assert JobConfig("model", "out", PruneConfig(device="arm")).target.ballast_for == ("arm",)
    assert JobConfig("model", "out", rewrite="none").target.ballast_for == ()
    with pytest.raises(InputError, match=r"--ballast must be one of auto, off\. Received: on"):
        PruneConfig(ballast="on")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_macs": 0.7}, r"alone, with --pattern=channel; or.*Received: --max_macs=0.7 --pattern=auto$"),
        (
            {"max_macs": 0.7, "pattern": Unstructured()},
            r"alone, with --pattern=channel; or.*Received: --max_macs=0.7 --pattern=unstructured$",
        ),
        ({"max_macs": 1.0, "pattern": Channel()}, r"must be in \(0, 1\), or auto\. Received: 1"),
        ({"max_macs": float("nan"), "pattern": Channel()}, r"must be in \(0, 1\), or auto\. Received: nan"),
        ({"max_macs": "most", "pattern": Channel()}, r"must be in \(0, 1\), or auto\. Received: most"),
        (
            {"max_macs": 0.7, "sparsity": 0.5, "pattern": Channel()},
            r"before --sparsity of what is left is zeroed\. Received: --max_macs=0.7 --pattern=channel --sparsity=0.5",
        ),
        (
            {"max_macs": 0.7, "min_speedup": 1.5},
            r"--min_speedup counts what zeros save, and.*Received: --max_macs=0.7 --min_speedup=1.5",
        ),
        (
            {"max_macs": "auto", "min_speedup": 1.5, "pattern": Channel()},
            r"--min_speedup counts what zeros save, and.*Received: --max_macs=auto --min_speedup=1.5",
        ),
        (
            {"max_macs": 0.7, "max_size_bytes": 1000, "pattern": Channel()},
            r"--max_size_bytes counts what zeros save, and.*Received: --max_macs=0.7 --max_size_bytes=1000",
        ),
        (
            {"max_macs": 0.7, "pattern": Channel(), "allocation": "uniform"},
            r"leave --allocation out\. Received: --allocation=uniform",
        ),
        (
            {"max_macs": 0.7, "pattern": Channel(), "criterion": "obs"},
            r"--criterion must be one of elimination, magnitude, activation\. Received: obs",
        ),
        (
            {"max_macs": 0.7, "sparsity": 0.5, "criterion": "elimination"},
            r"chooses channels .+, and no weights\. Received: --criterion=elimination --max_macs=0.7 --sparsity=0.5",
        ),
        ({"channel_multiple": 0}, r"--channel_multiple must be a whole number, at least 1\. Received: 0"),
    ],
)
def test_channels_that_are_asked_for_in_a_way_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        PruneConfig(**given)
