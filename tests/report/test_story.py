import pytest

from reflow_tf.report import limits, story

from .sample import MCU, NARROWING


def _headline(report):
    return story.headline(report).replace("\u00a0", " ")


def test_headline_of_a_signal_that_came_back(make_report):
    assert _headline(make_report()) == (
        "REFLOW brought mobilenet_v2 back from 11.3 % to 91.0 % top-1 (dense: 92.6 %), with 80 % of its prunable "
        "weights set to zero, in a file 3.0 times smaller."
    )


def test_headline_names_the_repairs_that_were_chosen(make_report):
    assert _headline(make_report(repair="auto")).startswith("obs and REFLOW brought mobilenet_v2 back")
    assert _headline(make_report(repair="obs")).startswith("obs brought mobilenet_v2 back")


@pytest.mark.parametrize("labelled", [True, False])
def test_advice_where_recalibration_alone_leaves_much(make_report, labelled):
    report = make_report(labelled=labelled)
    score = (report["accuracy"] or report["agreement"])["repaired"]
    for lost, given in ((9.9, False), (10.1, True), (-20.0, False)):
        score["drop_points"] = lost
        assert (story.advice(report) is not None) == given
    score["drop_points"] = 30.0
    assert "\u221230.0\u00a0points against dense; --allocation=auto --repair=auto" in story.advice(report)
    report["model"]["num_batch_norms"] = 0
    assert story.advice(report).startswith("Pruning leaves")
    report["sparsity"]["pattern"] = "nm:2,4"
    assert "--allocation" not in story.advice(report)
    report["sparsity"] |= {"pattern": "unstructured", "allocation": "auto"}
    assert "--allocation" not in story.advice(report)


@pytest.mark.parametrize("repair", ["auto", "obs", "none"])
def test_no_advice_to_who_asked_for_something_else(make_report, repair):
    assert story.advice(make_report(collapsed_after=True, repair=repair)) is None


def test_headline_claims_no_rescue_where_there_was_none(make_report):
    lost = _headline(make_report(collapsed_after=True))
    assert "brought" not in lost
    assert lost.startswith("mobilenet_v2 collapsed with 80 %")
    assert "the file scores 11.6 % top-1 (dense: 92.6 %)" in lost
    assert "brought" not in _headline(make_report(collapsed_before=False))


def test_headline_without_labels_speaks_of_agreement(make_report):
    assert "agreement with the dense model" in _headline(make_report(labelled=False))
    assert "top-1" not in _headline(make_report(labelled=False))


def test_headline_of_nothing_pruned(make_report):
    text = _headline(make_report(sparsity=0.0, collapsed_before=False))
    assert text.startswith("Nothing was pruned")
    assert text.endswith("as large as the dense one.")


def test_headline_admits_a_larger_file(make_report):
    report = make_report()
    report["size_bytes"]["file"] = round(1.21 * report["size_bytes"]["dense_file"])
    assert "in a file 1.21 times as large as the dense one" in _headline(report)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_verdicts_differ(make_report, before, after):
    report = make_report()
    report["signal"] |= {"collapsed_before": before, "collapsed_after": after}
    text = story.verdict(report)
    assert ("never collapsed" in text) == (not before and not after)
    assert ("came back" in text) == (before and not after)
    assert ("did not come back" in text) == (before and after)


def test_last_layer_is_the_deepest_whatever_the_order(make_report):
    report = make_report()
    deepest = report["signal"]["layers"][-1]
    report["signal"]["layers"].reverse()
    assert story.last_layer(report) is deepest
    assert story.last_layer(make_report(batch_norms=False)) is None


def test_every_sentence_can_be_said_of_every_run(any_report):
    for sentence in (
        story.headline,
        story.verdict,
        story.accuracy_sentence,
        story.signal_sentence,
        story.predictions_sentence,
        story.sparsity_sentence,
        story.size_sentence,
        story.proof_sentence,
        story.eligibility_sentence,
    ):
        text = sentence(any_report)
        assert text.endswith("."), sentence
        assert "None" not in text, sentence
        assert "nan" not in text, sentence
    for text in story.speed_sentences(any_report):
        assert text.endswith(".")
        assert "None" not in text


def test_speed_is_told_only_of_what_was_measured(make_report):
    timed, counted = story.speed_sentences(make_report())
    assert timed.startswith(
        "LiteRT.js 2.5.3, 1 thread: 16.6\u00a0ms dense, 6.70\u00a0ms as written (medians); "
        "pair by pair 2.48 times as fast"
    )
    assert "400\u00a0million as written: 2.50 times fewer" in counted
    assert story.speed_sentences(make_report(timed=False)) == []


def test_more_instructions_are_not_called_fewer(make_report):
    report = make_report()
    report["instructions"]["aarch64"] |= {"file": 1.25e9, "ratio": 0.8}
    assert story.speed_sentences(report)[1].endswith("1.25\u00a0billion as written: 1.25 times as many.")


def test_what_the_target_says_is_told_as_it_says_it(make_report):
    assert story.eligibility_sentence(make_report()) == "XNNPACK runs 1 cluster of this file sparse."
    assert story.eligibility_sentence(make_report(eligible=False)) == "XNNPACK runs nothing sparse."


def _budget(name, value, estimate, measured=None, passed=None):
    return {"name": name, "value": value, "estimate": estimate, "measured": measured, "passed": passed}


def _told(report):
    return limits.budget_sentence(report).replace("\u00a0", " ")


def test_a_sparsity_is_no_budget_of_the_file(make_report):
    assert limits.budget_sentence(make_report()) is None


def test_a_size_that_was_kept(make_report):
    report = make_report(budget=_budget("max_size_bytes", 4_000_000, 3_990_000, 3_989_000, True))
    assert _told(report) == (
        "--max_size_bytes=4000000 was kept: the file has 3,989,000 bytes; 3,990,000 were estimated."
    )
    assert "; --max_size_bytes was asked for)" in story.sparsity_sentence(report)


def test_a_size_that_was_missed_names_the_largest_parts(make_report):
    report = make_report(budget=_budget("max_size_bytes", 400, 390, 3_989_000, False))
    tensors = sorted(report["file"]["tensors"], key=lambda tensor: tensor["size_bytes"])
    told = _told(report)
    assert told.startswith(
        "--max_size_bytes=400 was missed: the file has 3,989,000 bytes; 390 were estimated. The largest"
    )
    assert all(tensor["name"] in told for tensor in tensors[-3:]) and tensors[-4]["name"] not in told


def test_a_speed_that_was_measured(make_report):
    report = make_report(budget=_budget("min_speedup", 1.8, 1.81, 1.62, False))
    web = report["latency"]["web"]["runtime"]
    assert _told(report) == (
        f"--min_speedup=1.8 was missed: in {web} the file is 1.62 times as fast as dense; "
        "1.81 times as fast as dense was estimated."
    )


def test_a_speed_that_was_not_measured_is_said_to_be_estimated(make_report):
    told = _told(make_report(timed=False, budget=_budget("min_speedup", 1.8, 1.81)))
    assert told.startswith("--min_speedup=1.8 is estimated, not measured: 1.81 times as fast as dense, by what other")


def test_a_speed_that_the_file_cannot_have(make_report):
    report = make_report(timed=False, eligible=False, budget=_budget("min_speedup", 1.8, 1.81, passed=False))
    assert _told(report) == (
        "--min_speedup=1.8 was missed: 1.81 times as fast as dense was estimated, but XNNPACK runs nothing sparse."
    )


def test_a_size_that_the_flash_budget_asked_for_is_called_by_that_name(make_report):
    told = _told(make_report(budget=_budget("flash_budget", 65_536, 65_521, 65_392, True)))
    assert told == "--flash_budget=65536 was kept: the file has 65,392 bytes; 65,521 were estimated."


def test_on_a_microcontroller_it_is_flash_that_the_headline_counts(make_report):
    assert _headline(make_report(mcu=MCU)).endswith("of its prunable weights set to zero, in 2.6 times less flash.")


def test_the_file_is_called_by_its_quantization_too(make_report):
    report = make_report()
    assert [story.label(report, step) for step in story.steps(report)] == ["dense", "pruned", "repaired", "file"]
    report["file"]["quantize"] = "int8"
    assert story.label(report, story.step(report, "file")) == "file (int8)"


def test_zeros_that_were_there_before(make_report):
    report = make_report()
    achieved = report["sparsity"]["achieved"]
    assert story.zeros_before_sentence(report) is None and "before" not in story.sparsity_sentence(report)
    report["sparsity"]["before"] = 0.5
    assert story.zeros_before_sentence(report).endswith("before anything was pruned; they stay zero and count.")
    assert "80.0\u00a0% was asked for; 50.0\u00a0% were before)" in story.sparsity_sentence(report)
    assert "80 % of its prunable weights at zero" in _headline(report)
    report["sparsity"] |= {"before": achieved, "requested": 0.3}
    assert story.zeros_before_sentence(report).endswith("30.0\u00a0% was asked for: no other weight was set to zero.")
    assert _headline(report).startswith("Nothing more was pruned: with the 80 % zeros that it came with, the file of ")
    report["sparsity"]["before"] = 0.9
    assert "gave some of them values again" in story.zeros_before_sentence(report)


def test_the_picture_says_how_many_images_each_stage_rests_on(make_report):
    """As for a microcontroller: all images for dense, some for the stages inside Keras, others for TFLM."""
    report = make_report()
    for name, n in (("pruned", 512), ("repaired", 512), ("file", 1000)):
        report["accuracy"][name]["n"] = n
    assert "Top-1 accuracy on 2,000\u00a0images (pruned and repaired: on 512 of them; file: on 1,000 of them)." in (
        story.share_sentence(report)
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_a_repair_that_lost_is_not_answered_with_more_repair(make_report, labelled):
    report = make_report(labelled=labelled, collapsed_before=False)
    scores = report["accuracy"] or report["agreement"]
    scores["pruned"] |= {"top1": 0.9, "top1_interval": [0.88, 0.92], "drop_points": 10.0}
    scores["repaired"] |= {"top1": 0.3, "top1_interval": [0.28, 0.32], "drop_points": 70.0}
    assert story.advice(report) == (
        "The repair lost 60.0\u00a0points against the pruned model: --repair=none leaves it out. Most likely the "
        "moving moments in the model's batch norms are not those of these images."
    )
    scores["pruned"] |= {"top1": 0.31, "top1_interval": [0.29, 0.33], "drop_points": 69.0}
    assert "--repair=auto" in story.advice(report)


def test_channels_that_were_removed_are_told(make_report):
    report = make_report()
    assert story.narrowing_sentence(report) is None
    report["narrowing"] = NARROWING
    sentence = story.narrowing_sentence(report).replace("\u00a0", " ")
    assert sentence.startswith("8 channels were removed, in 1 of 2 groups: 70.0 % of the multiply-adds are left")
    assert sentence.endswith("1 group had to stay; the first: c/kernel is an output of the network.")
    assert "70 % of its multiply-adds and 80 % of the prunable weights that are left zero" in story.headline(
        report
    ).replace("\u00a0", " ")
    report["sparsity"]["layers"] = []
    assert "70 % of its multiply-adds," in story.headline(report).replace("\u00a0", " ")
    assert "The narrower model computes what the masked one does." in story.proof_sentence(report)
