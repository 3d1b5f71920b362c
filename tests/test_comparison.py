import dataclasses

import numpy as np
import pytest

from reflow_tf import comparison
from reflow_tf.comparison import Bench, run, score_kernels
from reflow_tf.config import JobConfig, PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits
from reflow_tf.pruning import prune
from reflow_tf.report.comparison import from_json
from reflow_tf.report.scores import score_accuracy
from reflow_tf.signal import measure_signal
from reflow_tf.sparsity.criteria import CRITERIA

METHODS = {
    "magnitude": PruneConfig(repair="none"),
    "activation": PruneConfig(criterion="activation", repair="none"),
    "magnitude+obs": PruneConfig(repair="obs"),
}


@pytest.fixture
def bench(settled):
    model, inputs = settled
    specs = [spec for spec in find_kernels(model).specs if spec.path in ("conv_1/kernel", "conv_2/kernel")]
    labels = model(inputs[48:]).numpy().argmax(-1)
    return Bench(model, specs, ("fisher", "activation"), [inputs[:48]], [inputs[48:]], labels)


@pytest.fixture
def job(inputs, tmp_path):
    return JobConfig(model=inputs.model, data=inputs.data, output_dir=str(tmp_path / "out"), preprocess="tf")


def count_zeros(bench):
    weights = find_kernels(bench._model).read()
    return {spec.path: int(np.count_nonzero(weights[spec.path] == 0)) for spec in bench._specs}


@pytest.mark.parametrize("repair", ["none", "obs", "woodfisher"])
def test_a_cell_is_what_pruning_and_repairing_by_hand_gives(bench, settled, repair):
    model, inputs = settled
    bits = read_bits(model.weights)
    labels = model(inputs[48:]).numpy().argmax(-1)
    found = bench.measure(PruneConfig(sparsity=0.8, repair="chita"))  # leaves its traces, if there are any
    found = bench.measure(PruneConfig(sparsity=0.8, repair=repair))
    chain = "reflow" if repair == "none" else f"{repair},reflow"
    for state, repairs in (("alone", repair), ("reflow", chain)):
        result = prune(model, PruneConfig(sparsity=0.8, repair=repairs), [inputs[:48]])
        signal = measure_signal(result.model, [inputs[48:]])
        assert getattr(found, state).score == score_accuracy(signal.ranked, labels, 4)
    assert len(found.statements) == (1 if repair == "none" else 2) and "REFLOW" in found.statements[-1]
    assert not found.recalibrates and read_bits(model.weights) == bits


def test_the_dense_model_is_right_about_its_own_predictions(bench):
    assert bench.dense.top1 == 1.0 and bench.dense.n == 48


def test_every_method_zeroes_as_many_weights_of_each_layer(bench):
    zeros = []
    for criterion in ("magnitude", "fisher", "activation"):
        bench.measure(PruneConfig(sparsity=0.7, criterion=criterion, repair="none"))
        zeros.append(count_zeros(bench))
    assert zeros[0] == zeros[1] == zeros[2] and sum(zeros[0].values()) == round(0.7 * (8 * 24 + 24 * 24))
    assert len(set(zeros[0].values())) == 2, "the allocation is not uniform"


def test_a_repair_that_recalibrates_is_told_apart(bench):
    assert bench.measure(PruneConfig(sparsity=0.5, repair="least_squares")).recalibrates


def test_statistics_are_gathered_once_for_all_criteria_that_share_them(settled, monkeypatch):
    model, inputs = settled
    specs = find_kernels(model).specs[1:3]
    gathered = []
    gather = comparison.gather
    monkeypatch.setattr(comparison, "gather", lambda *given: gathered.append(sorted(given[2])) or gather(*given))
    scores = score_kernels(model, specs, CRITERIA, [inputs])
    assert sorted(gathered) == [["fisher_blocks"], ["input_gram"]]
    assert set(scores) == set(CRITERIA)
    kernel = find_kernels(model).read()[specs[0].path]
    statistics = gather(model, specs, {"fisher_blocks"}, [inputs])[specs[0].path]
    np.testing.assert_allclose(scores["fisher"][specs[0].path], CRITERIA["fisher"](kernel, statistics), rtol=1e-5)


def measured_cells(monkeypatch, stop_after=None):
    """What is measured from now on; the cell after `stop_after` is interrupted."""
    seen = []
    measure = Bench.measure

    def watch(bench, config):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append((config.criterion, config.repair, config.requested_sparsity))
        return measure(bench, config)

    monkeypatch.setattr(Bench, "measure", watch)
    return seen


def test_an_interrupted_run_goes_on_where_it_was(job, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        first = measured_cells(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            run(job, METHODS, [0.5, 0.8], "1")
    path = tmp_path / "out" / "compare.json"
    left = from_json(path.read_bytes())
    assert [(cell["method"], cell["sparsity"]) for cell in left["cells"]] == [("magnitude", 0.5), ("activation", 0.5)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["compare.html", "compare.json"]
    with monkeypatch.context() as patch:
        second = measured_cells(patch)
        done = run(job, METHODS, [0.5, 0.8], "1")
    assert len(first) == 2 and len(second) == 4 and not set(first) & set(second)
    assert done["cells"][:2] == left["cells"] and from_json(path.read_bytes()) == plain(done)
    with monkeypatch.context() as patch:
        third = measured_cells(patch)
        assert run(job, METHODS, [0.5], "1") == plain(done) and third == []
    fresh = run(dataclasses.replace(job, output_dir=str(tmp_path / "fresh")), METHODS, [0.5, 0.8], "1")
    for cell in (*fresh["cells"], *done["cells"]):
        cell["seconds"] = 0.0
    assert plain(fresh)["cells"] == plain(done)["cells"]


def plain(document):
    return from_json(comparison.comparison.to_json(document).encode())


def test_gains_are_against_plain_magnitude_at_the_same_sparsity(job):
    document = run(job, METHODS, [0.5, 0.8], "1")
    baseline = {cell["sparsity"]: cell["alone"]["top1"] for cell in document["cells"] if cell["method"] == "magnitude"}
    assert len(document["cells"]) == 6 and document["data"]["labelled"] and document["dense"]["top1"] == 1.0
    for cell in document["cells"]:
        for state in ("alone", "reflow"):
            expected = 100 * (cell[state]["top1"] - baseline[cell["sparsity"]])
            assert cell[state]["gain_points"] == pytest.approx(expected)
            low, high = cell[state]["top1_interval"]
            assert low <= cell[state]["top1"] <= high


def test_without_labels_agreement_counts(job, inputs):
    document = run(dataclasses.replace(job, data=inputs.unlabelled), METHODS, [0.8], "1")
    assert not document["data"]["labelled"] and document["dense"]["top1"] == 1.0
    assert document["dense"]["n"] == document["data"]["evaluation"] == 24
    assert 0 < document["cells"][0]["reflow"]["top1"] < 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed=0"),
        ({"calibration_samples": 32}, "calibration_samples=1000"),
        ({"prune": PruneConfig(allocation="erk")}, "allocation=global"),
        ({"prune": PruneConfig(prunable="all")}, "prunable=target"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(job, left, change, named):
    run(job, {"magnitude": METHODS["magnitude"]}, [0.5], "1")
    before, other = left(), dataclasses.replace(job, **change)
    with pytest.raises(InputError, match=rf"other settings, {named}: .*--overwrite"):
        run(other, METHODS, [0.5], "1")
    assert left() == before
    document = run(dataclasses.replace(other, overwrite=True), {"magnitude": METHODS["magnitude"]}, [0.8], "1")
    assert [cell["sparsity"] for cell in document["cells"]] == [0.8]


def test_other_images_behind_the_same_name_are_refused(job, inputs, tmp_path):
    with np.load(inputs.data) as archive:
        x, y = archive["x"], archive["y"]
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    job = dataclasses.replace(job, data=str(tmp_path / "mine.npz"))
    run(job, {"magnitude": METHODS["magnitude"]}, [0.5], "1")
    np.savez(tmp_path / "mine.npz", x=x, y=np.roll(y, 1))
    with pytest.raises(InputError, match="other weights or images"):
        run(job, METHODS, [0.5], "1")


def test_a_folder_of_something_else_is_left_alone(job, tmp_path, left):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    before = left()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"thesis.txt"):
            run(dataclasses.replace(job, overwrite=overwrite), METHODS, [0.5], "1")
    assert left() == before


def test_a_damaged_file_is_refused_and_what_a_cut_off_write_left_is_not(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json.part").write_text('{"ver')
    run(job, {"magnitude": METHODS["magnitude"]}, [0.5], "1")
    assert not (tmp_path / "out" / "compare.json.part").exists()
    (tmp_path / "out" / "compare.json").write_text('{"ver')
    with pytest.raises(InputError, match=r"must be what an earlier run wrote"):
        run(job, METHODS, [0.5], "1")
