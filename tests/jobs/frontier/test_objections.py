"""What is not made of a network, before anything is pruned: no such form, no room, no chance."""

import keras
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.candidates import list_candidates
from reflow_tf.jobs.frontier.costs import Cost
from reflow_tf.jobs.frontier.devices import DEVICES
from reflow_tf.jobs.frontier.objections import Objections, Trial
from reflow_tf.jobs.frontier.request import Search


def build(kernel_size):
    x = layers.Conv2D(4, 3, name="stem")(image := keras.Input((8, 8, 3)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, kernel_size, name="second")(x))
    return keras.Model(image, layers.Dense(2)(x))


def object_to(name, device, model, cells=(), zeros=0.01, trial=None, **budgets):
    """`zeros`: what the candidate's zeros cost, as a share; of an estimate of cycles too, if the device has one."""
    preset = DEVICES[device]
    job = JobConfig("m", "o", PruneConfig(target=preset.dense_target, sparsity=0.0, repair="none"), **budgets)
    search = Search(job, (preset,), 1.0, "reflow", None, "1")
    candidates = list_candidates(preset, "reflow", has_budget=job.has_budget)
    (candidate,) = [each for each in candidates if each.name == name]

    def foresee(alone):
        assert alone.prune.max_macs is None and alone.prune.sparsity == candidate.prune.sparsity
        return Cost(0, zeros, False, 0, zeros if preset.estimates_cycles else None)

    return Objections(search, preset, candidates, model, foresee, trial).find(candidate, list(cells))


def make_cell(name, share, expected=0.0, **more):
    cell = {"name": name, "kind": name.split()[0], "number_format": name.split()[-1], "cost_share": share}
    cell |= {"fits": True, "differs": False, "cycles_share": None}
    return cell | {"expected_drop_points": expected, "expected_error_points": 0.0} | more


@pytest.mark.parametrize("device", ["phone", "browser", "raspberry_pi_3"])
def test_a_network_without_1x1_kernels_has_no_sparse_form_there(device):
    reason = "no kernel of the network can be sparse there: XNNPACK runs no conv sparse"
    for name in ("sparse 50 %, float32", "narrow 80 % and sparse 50 %, float32"):
        assert object_to(name, device, build(3)) == reason
    assert object_to("sparse 50 %, float32", "browser", build(1)) is None
    assert object_to("narrow 80 %, float32", device, build(3)) is None


def test_zeros_make_no_room_in_ram_and_channels_do():
    plain = make_cell("plain int8", 1.0, ram_bytes=50_000)
    reason = "plain int8 needs 50,000 bytes of RAM, of which zeros save none"
    given = {"device": "tflm", "model": build(3), "cells": [plain]}
    assert object_to("sparse 50 %, int8", **given, ram_budget=40_000) == reason
    assert object_to("sparse 50 %, int8", **given, ram_budget=50_000) is None
    assert object_to("narrow 80 %, int8", **given, ram_budget=40_000) is None


def test_a_network_that_fits_is_not_narrowed_to_fit():
    given = {"device": "tflm", "model": build(3), "ram_budget": 40_000}
    beyond, within = (make_cell("plain int8", 1.0, ram_bytes=50_000, fits=fits) for fits in (False, True))
    assert object_to("narrow to fit, int8", **given, cells=[beyond]) is None
    assert object_to("narrow to fit, int8", **given, cells=[within]) == "plain int8 fits as it is"


def test_what_would_cost_more_than_a_plain_conversion_is_not_made():
    cells = [make_cell("plain float32", 1.0), make_cell("plain int8", 0.5)]
    reason = object_to("narrow 80 %, float32", "browser", build(1), cells)
    assert reason == "it would cost about 0.80 of float32 or more, and plain int8, which costs 0.50, may be shipped"
    assert object_to("narrow 80 %, int8", "browser", build(1), cells) is None


@pytest.mark.parametrize("wrong", [{"differs": True}, {"fits": False}])
def test_what_may_not_be_shipped_itself_keeps_nothing_from_being_made(wrong):
    cells = [make_cell("plain float32", 1.0), make_cell("plain int8", 0.5, **wrong)]
    assert object_to("narrow 80 %, float32", "browser", build(1), cells) is None


@pytest.mark.parametrize("device", ["raspberry_pi_4", "browser", "cortex_m4"])
def test_zeros_are_priced_before_any_repair_and_with_fewer_channels_less(device):
    number_format = DEVICES[device].sparse_formats[0]
    plain = make_cell(f"plain {number_format}", 1.0, cycles_share=1.0 if device == "raspberry_pi_4" else None)
    sparse, both = f"sparse 50 %, {number_format}", f"narrow 80 % and sparse 50 %, {number_format}"
    for zeros, least in ((0.99, sparse), (1.3, both)):
        reason = object_to(least, device, build(1), [plain], zeros)
        assert reason.endswith(f", and {plain['name']}, which costs 1.00, may be shipped")
    # An estimate of other kernels must say 1.4 times fewer.
    assert object_to(both, device, build(1), [plain], 0.85) is None
    assert object_to(sparse, device, build(1), [plain], 0.7) is None


def test_what_more_zeros_cost_already_is_not_measured_again_of_fewer():
    preset = DEVICES["cortex_m4"]
    job = JobConfig("m", "o", PruneConfig(target=preset.dense_target, sparsity=0.0, repair="none"))
    candidates = {each.name: each for each in list_candidates(preset, "reflow")}
    costs, asked = {0.5: 0.95, 0.7: 0.9, 0.8: 0.6}, []

    def foresee(alone):
        asked.append(alone.prune.sparsity)
        return Cost(0, costs[alone.prune.sparsity])

    search = Search(job, (preset,), 1.0, "reflow", None, "1")
    objections = Objections(search, preset, list(candidates.values()), build(1), foresee)
    cells = [make_cell("plain int8", 1.0), make_cell("narrow 65 %, int8", 0.7)]
    for name in ("sparse 70 %, int8", "sparse 50 %, int8"):
        assert "it would cost about 0.90 of int8 or more" in objections.find(candidates[name], cells)
    assert asked == [0.7]
    assert objections.find(candidates["sparse 80 %, int8"], cells) is None and asked == [0.7, 0.8]
    both = objections.find(candidates["narrow 80 % and sparse 50 %, int8"], cells)
    assert "about 0.72 of int8 or more" in both and asked == [0.7, 0.8]


def test_what_costs_more_than_a_file_of_another_kind_that_may_be_shipped_is_not_made():
    cells = [make_cell("plain int8", 1.0), make_cell("narrow 65 %, int8", 0.7, expected=0.5)]
    reason = object_to("sparse 70 %, int8", "cortex_m4", build(1), cells, 0.75)
    assert reason == "it would cost about 0.75 of int8 or more, and narrow 65 %, int8, which costs 0.70, may be shipped"
    assert object_to("sparse 70 %, int8", "cortex_m4", build(1), cells, 0.71) is None  # as cheap, and may lose less
    cells[1]["expected_drop_points"] = 1.5
    assert object_to("sparse 70 %, int8", "cortex_m4", build(1), cells, 0.75) is None


def test_bytes_do_not_go_by_multiply_adds():
    cells = [make_cell("plain int8", 1.0), make_cell("sparse 80 %, int8", 0.3)]
    assert object_to("narrow 65 %, int8", "tflm", build(1), cells) is None
    assert object_to("narrow 65 % and sparse 70 %, int8", "tflm", build(1), cells, 0.9) is None


def test_a_network_narrowed_to_fit_says_nothing_of_wider_ones():
    cells = [make_cell("plain int8", 1.0, ram_bytes=9, fits=False)]
    cells += [make_cell("narrow to fit, int8", 0.3, expected=60.0)]
    assert object_to("narrow 65 %, int8", "tflm", build(1), cells, ram_budget=8) is None


def test_nothing_goes_further_than_what_may_lose_too_much():
    plain = make_cell("plain int8", 1.0)
    cells = [plain, make_cell("narrow 65 %, int8", 0.6, expected=1.06)]
    reason = "narrow 65 %, int8 is expected to lose 1.06 points already"
    for name in ("narrow 50 %, int8", "narrow 65 % and sparse 70 %, int8"):
        assert object_to(name, "tflm", build(1), cells) == reason
    for name in ("narrow 80 %, int8", "sparse 80 %, int8", "narrow 80 % and sparse 50 %, int8"):
        assert object_to(name, "tflm", build(1), cells) is None
    cells = [plain, make_cell("sparse 50 %, int8", 0.6, expected=2.0)]
    for name in ("sparse 70 %, int8", "narrow 80 % and sparse 50 %, int8"):
        assert object_to(name, "tflm", build(1), cells) == "sparse 50 %, int8 is expected to lose 2.00 points already"
    cells[1] |= {"expected_drop_points": 0.9, "expected_error_points": 2.0}  # by chance, perhaps
    assert object_to("sparse 70 %, int8", "tflm", build(1), cells) is None


def test_where_a_number_format_alone_may_lose_too_much_nothing_is_pruned_in_it():
    cells = [make_cell("plain float32", 1.0), make_cell("plain int8", 0.5, expected=1.5)]
    assert object_to("narrow 80 %, int8", "browser", build(1), cells) == (
        "plain int8 is expected to lose 1.50 points already"
    )
    assert object_to("narrow 80 %, float32", "browser", build(1), cells) is None
    cells = [make_cell("plain float32", 1.0), make_cell("plain float16", 0.5, expected=1.5)]  # not by pruning
    assert object_to("narrow 65 %, float32", "phone", build(1), cells) is None
    cells = [make_cell("plain float32", 1.0), make_cell("narrow 65 %, float16", 0.3, expected=1.5)]
    reason = "narrow 65 %, float16 is expected to lose 1.50 points already"
    assert object_to("narrow 65 %, int8", "phone", build(1), cells) == reason


def test_what_is_milder_than_a_file_that_may_be_shipped_is_not_made():
    cells = [make_cell("plain int8", 1.0), make_cell("narrow 65 %, int8", 0.6, expected=0.5)]
    assert object_to("narrow 80 %, int8", "tflm", build(1), cells) == "narrow 65 %, int8 may be shipped, and costs less"
    for name in ("narrow 50 %, int8", "sparse 50 %, int8", "narrow 80 % and sparse 50 %, int8"):
        assert object_to(name, "tflm", build(1), cells) is None
    cells[1]["fits"] = False
    assert object_to("narrow 80 %, int8", "tflm", build(1), cells) is None


def test_what_loses_far_too_much_with_fewer_images_is_not_made_with_all():
    run = []

    def make_trial(expected, error=0.5):
        return Trial(125, "image", lambda candidate: run.append(candidate.name) or (expected, error), [])

    plain = make_cell("plain int8", 1.0)
    given = {"device": "tflm", "model": build(1)}
    trial = make_trial(4.0)  # 3.2 at least, and twice the limit are 2
    reason = "narrow 65 %, int8, fitted to 125 images, is expected to lose 4.0 ± 0.5 points"
    for name in ("narrow 65 %, int8", "narrow 50 %, int8", "narrow 65 % and sparse 70 %, int8"):
        assert object_to(name, **given, cells=[plain], trial=trial) == reason
    assert run == ["narrow 65 %, int8"] and trial.results == [
        {"name": run[0], "fitted": 125, "expected_drop_points": 4.0, "expected_error_points": 0.5}
    ]
    assert object_to("narrow 80 %, int8", **given, cells=[plain], trial=trial).startswith("narrow 80 %, int8, fitted")
    assert object_to("sparse 70 %, int8", **given, cells=[plain], trial=make_trial(2.5)) is None  # by chance, perhaps
    hopeless = make_trial(4.0)
    hopeless.find(next(each for each in list_candidates(DEVICES["tflm"], "reflow") if each.name == "sparse 70 %, int8"))
    reason = object_to("sparse 80 %, int8", **given, cells=[plain], trial=hopeless, zeros=None)  # which nobody asks for
    assert reason.startswith("sparse 70 %, int8, fitted to 125 images")
    run.clear()
    ships = [plain, make_cell("sparse 50 %, int8", 0.9, expected=0.5)]
    assert object_to("narrow 65 %, int8", **given, cells=ships, trial=make_trial(9.0)) is None
    fits_not = make_cell("plain int8", 1.0, fits=False)
    assert object_to("narrow to fit, int8", **given, cells=[fits_not], trial=make_trial(9.0), ram_budget=8) is None
    assert run == []


def test_of_several_steps_the_middle_is_made_first_and_pairs_after_their_parts():
    for device in DEVICES.values():
        names = [each.name for each in list_candidates(device, "reflow")]
        pruned = [name for name in names if not name.startswith("plain")]
        assert pruned[0].startswith("narrow 65 %")
        pairs = [i for i, name in enumerate(pruned) if " and " in name]
        assert pairs == list(range(len(pruned) - len(pairs), len(pruned)))


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_how_far_candidates_go_is_an_order(device):
    candidates = [each for each in list_candidates(DEVICES[device], "reflow") if each.number_format == "int8"]
    for one in candidates:
        assert one.goes_as_far_as(one)
        for other in candidates:
            both_ways = one.goes_as_far_as(other) and other.goes_as_far_as(one)
            assert not both_ways or one == other
            for third in candidates:
                chain = one.goes_as_far_as(other) and other.goes_as_far_as(third)
                assert not chain or one.goes_as_far_as(third)
