import csv
import dataclasses
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import comparison
from reflow_tf.jobs.comparison import Bench, Cell, Outcome, run, study_kernels
from reflow_tf.jobs.resuming import describe_settings, locked
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import load_model
from reflow_tf.models.statistics import gather
from reflow_tf.models.surgery import read_bits
from reflow_tf.pruning import prune
from reflow_tf.repair import impact
from reflow_tf.report.comparison import BASELINE, format_table, from_json
from reflow_tf.report.figures import FIGURES
from reflow_tf.report.preparation import describe_unmerged
from reflow_tf.report.resumable import to_json
from reflow_tf.report.scores import score_accuracy, score_closeness
from reflow_tf.signal import Signal, rank_classes
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.tools.compare import read_method

METHODS = {
    "magnitude": PruneConfig(repair="none"),
    "activation": PruneConfig(criterion="activation", repair="none"),
    "magnitude+obs": PruneConfig(repair="obs"),
}
MAGNITUDE = {"magnitude": METHODS["magnitude"]}
MEASURED = (
    *(PruneConfig(criterion=criterion, repair="none") for criterion in ("magnitude", "fisher", "activation")),
    *(PruneConfig(repair=repair) for repair in ("obs", "woodfisher", "chita", "least_squares")),
)


def make_bench(settled):
    model, inputs = settled
    specs = [spec for spec in find_kernels(model).specs if spec.path in ("conv_1/kernel", "conv_2/kernel")]
    labels = model(inputs[48:]).numpy().argmax(-1)
    return Bench(model, specs, MEASURED, [inputs[:48]], [inputs[48:]], labels)


@pytest.fixture(scope="module")
def bench(settled):
    return make_bench(settled)


def test_memory_is_shared_with_others_on_the_machine(settled):
    model, inputs = settled
    specs = [spec for spec in find_kernels(model).specs if spec.path in ("conv_1/kernel", "conv_2/kernel")]
    given = model, specs, [PruneConfig(repair="least_squares")], [inputs[:48]], [inputs[48:]]
    config = PruneConfig(repair="least_squares", memory_budget=7_000_000)
    Bench(*given).measure(config)
    with pytest.raises(InputError, match=r"--memory_budget must be at least .* in each of 100 workers"):
        Bench(*given, crowding=100).measure(config)


@pytest.fixture
def job(inputs, tmp_path):
    return JobConfig(model=inputs.model, data=inputs.data, output_dir=str(tmp_path / "out"), preprocess="tf")


def count_zeros(bench):
    weights = find_kernels(bench._model).read()
    return {spec.path: int(np.count_nonzero(weights[spec.path] == 0)) for spec in bench._specs}


@pytest.mark.parametrize("repair", ["none", "obs", "woodfisher", "chita"])
def test_a_cell_is_what_pruning_and_repairing_by_hand_gives(bench, settled, repair):
    model, inputs = settled
    bits = read_bits(model.weights)
    found = bench.measure(PruneConfig(sparsity=0.8, repair=repair))
    chain = "reflow" if repair == "none" else f"{repair},reflow"
    for state, repairs in (("alone", repair), ("reflow", chain)):
        result = prune(model, PruneConfig(sparsity=0.8, repair=repairs), [inputs[:48]])
        ranked = rank_classes(result.model(inputs[48:]).numpy())
        outcome = getattr(found, state)
        assert outcome.score == score_accuracy(ranked, model(inputs[48:]).numpy().argmax(-1), 4)
        assert outcome.effective_classes == pytest.approx(Signal({}, ranked, 4, 1.0).effective_classes)
    assert found.reflow.variance_ratio == pytest.approx(1, abs=0.5), "recalibration gives the variance back"
    assert len(found.statements) == (1 if repair == "none" else 2) and "REFLOW" in found.statements[-1]
    assert not found.recalibrates and read_bits(model.weights) == bits


@pytest.mark.slow
def test_a_cell_is_the_same_whatever_was_measured_before(bench, settled):
    config = PruneConfig(sparsity=0.8, repair="woodfisher")
    fresh = make_bench(settled).measure(config)
    bench.measure(PruneConfig(sparsity=0.9, repair="chita"))
    again = bench.measure(config)
    assert dataclasses.replace(again, seconds=fresh.seconds) == fresh


def test_the_dense_model_is_right_about_its_own_predictions(bench):
    assert bench.dense.score.top1 == 1.0 and bench.dense.score.n == 48


def test_every_method_zeroes_as_many_weights_of_each_layer(bench):
    zeros = []
    for criterion in ("magnitude", "fisher", "activation"):
        bench.measure(PruneConfig(sparsity=0.7, criterion=criterion, repair="none"))
        zeros.append(count_zeros(bench))
    assert zeros[0] == zeros[1] == zeros[2] and sum(zeros[0].values()) == round(0.7 * (8 * 24 + 24 * 24))
    assert len(set(zeros[0].values())) == 2, "the allocation is not uniform"


def test_a_repair_that_recalibrates_is_told_apart(bench):
    assert bench.measure(PruneConfig(sparsity=0.5, repair="least_squares")).recalibrates


def test_statistics_are_gathered_once_for_all_that_share_them(settled, monkeypatch):
    gathered = []

    def watch(*given, **options):
        gathered.append(sorted(given[2]))
        return gather(*given, **options)

    monkeypatch.setattr(comparison, "gather", watch)
    monkeypatch.setattr(impact, "gather", watch)
    bench = make_bench(settled)
    assert sorted(gathered) == [["fisher_blocks"], ["input_gram"]]
    for repair in ("obs", "woodfisher"):
        bench.measure(PruneConfig(sparsity=0.8, repair=repair))
    assert len(gathered) == 2, "a cell gathers nothing"


def test_criteria_see_the_statistics_and_only_what_repairs_read_is_kept(settled):
    model, inputs = settled
    specs = find_kernels(model).specs[1:3]
    scores, known = study_kernels(model, specs, CRITERIA, ["input_gram"], [inputs])
    assert set(scores) == set(CRITERIA) and set(known) == {"input_gram"}
    path = specs[0].path
    assert set(known["input_gram"]) == {spec.path for spec in specs}
    kernel = find_kernels(model).read()[path]
    found = gather(model, specs, ["fisher_blocks"], [inputs])[path] | known["input_gram"][path]
    for name, criterion in CRITERIA.items():
        np.testing.assert_allclose(scores[name][path], criterion(kernel, found), rtol=1e-4)
    assert study_kernels(model, specs, ["magnitude"], ["input_gram"], [inputs])[1].keys() == {"input_gram"}


def canned_cells(monkeypatch, stop_after=None):
    """From now on cells are made up, each from its configuration; the one after `stop_after` is interrupted."""
    seen = []

    def measure(bench, config):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append((config.criterion, config.repair, config.requested_sparsity))
        right = round(10 * (1 - config.requested_sparsity)) + len(config.repair)
        ranked = (np.arange(24) >= [[right], [right + 5]]).astype(int)
        scores = (score_accuracy(of_state[:, None], np.zeros(24, int), 4) for of_state in ranked)
        return Cell(*(Outcome(score, 0.5, 2.0) for score in scores), False, (f"{right} right",), 0.5)

    monkeypatch.setattr(Bench, "measure", measure)
    return seen


def test_an_interrupted_run_goes_on_where_it_was(job, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        first = canned_cells(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            run(job, METHODS, [0.5, 0.8], "1")
    path = tmp_path / "out" / "compare.json"
    left = from_json(path.read_bytes())
    assert [(cell["method"], cell["sparsity"]) for cell in left["cells"]] == [("magnitude", 0.5), ("activation", 0.5)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["compare.html", "compare.json", "compare.lock"]
    second = canned_cells(monkeypatch)
    done = run(job, METHODS, [0.5, 0.8], "1")
    assert len(first) == 2 and len(second) == 4 and not set(first) & set(second)
    assert done["cells"][:2] == left["cells"] and from_json(path.read_bytes()) == plain(done)
    assert run(job, METHODS, [0.5], "1") == plain(done) and len(second) == 4
    fresh = run(dataclasses.replace(job, output_dir=str(tmp_path / "fresh")), METHODS, [0.5, 0.8], "1")
    assert plain(fresh)["cells"] == plain(done)["cells"]


def plain(document):
    return from_json(to_json(document).encode())


def test_gains_are_against_plain_magnitude_at_the_same_sparsity(job, monkeypatch):
    canned_cells(monkeypatch)
    document = run(job, METHODS, [0.5, 0.8], "1")
    baseline = {cell["sparsity"]: cell["alone"]["top1"] for cell in document["cells"] if cell["method"] == "magnitude"}
    assert len(document["cells"]) == 6 and baseline == {0.5: pytest.approx(9 / 24), 0.8: pytest.approx(6 / 24)}
    for cell in document["cells"]:
        for state in ("alone", "reflow"):
            expected = 100 * (cell[state]["top1"] - baseline[cell["sparsity"]])
            assert cell[state]["gain_points"] == pytest.approx(expected)
            low, high = cell[state]["top1_interval"]
            assert low <= cell[state]["top1"] <= high


@pytest.mark.parametrize("labelled", [True, False])
def test_without_labels_agreement_counts(job, inputs, labelled):
    job = job if labelled else dataclasses.replace(job, data=inputs.unlabelled)
    document = run(job, {**MAGNITUDE, "magnitude+obs": METHODS["magnitude+obs"]}, [0.8], "1")
    assert document["data"]["labelled"] == labelled and document["dense"]["top1"] == 1.0
    assert document["dense"]["n"] == document["data"]["evaluation"] == (48 if labelled else 24)
    magnitude, obs = document["cells"]
    assert 0 < magnitude["alone"]["top1"] < obs["alone"]["top1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed=0"),
        ({"calibration_samples": 32}, "calibration_samples=1000"),
        ({"prune": PruneConfig(allocation="erk")}, "allocation=global"),
        ({"prune": PruneConfig(prunable="all")}, "prunable=target"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(job, left, change, named, monkeypatch):
    canned_cells(monkeypatch)
    run(job, MAGNITUDE, [0.5], "1")
    before, other = left(), dataclasses.replace(job, **change)
    with pytest.raises(InputError, match=rf"other settings, {named}: .*--overwrite"):
        run(other, METHODS, [0.5], "1")
    assert left() == before
    document = run(dataclasses.replace(other, overwrite=True), MAGNITUDE, [0.8], "1")
    assert [cell["sparsity"] for cell in document["cells"]] == [0.8]


def test_other_images_behind_the_same_name_are_refused(job, inputs, tmp_path, monkeypatch):
    canned_cells(monkeypatch)
    with np.load(inputs.data) as archive:
        x, y = archive["x"], archive["y"]
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    job = dataclasses.replace(job, data=str(tmp_path / "mine.npz"))
    run(job, MAGNITUDE, [0.5], "1")
    np.savez(tmp_path / "mine.npz", x=x, y=np.roll(y, 1))
    with pytest.raises(InputError, match="another network or other images"):
        run(job, METHODS, [0.5], "1")


def test_a_folder_of_something_else_is_left_alone(job, tmp_path, left):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    before = left()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"thesis.txt"):
            run(dataclasses.replace(job, overwrite=overwrite), METHODS, [0.5], "1")
    assert left() == before


def test_a_damaged_file_is_refused_and_what_a_cut_off_write_left_is_not(job, tmp_path, monkeypatch):
    canned_cells(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json.part").write_text('{"ver')
    run(job, MAGNITUDE, [0.5], "1")
    assert not (tmp_path / "out" / "compare.json.part").exists()
    (tmp_path / "out" / "compare.json").write_text('{"ver')
    with pytest.raises(InputError, match=r"must be what an earlier run wrote"):
        run(job, METHODS, [0.5], "1")


@pytest.fixture
def numbers(tmp_path):
    """Model and data of a network that gives a map and three numbers."""
    keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3))
    found = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 3)(layers.Rescaling(1 / 128, -1)(inputs))))
    found = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 1)(found)))
    heads = [layers.Conv2D(2, 1)(found), layers.Dense(3)(layers.GlobalAveragePooling2D()(found))]
    x = np.random.default_rng(0).integers(0, 255, (120, 8, 8, 3)).astype(np.uint8)
    reflow_tf.recalibrate(keras.Model(inputs, heads), x.astype(np.float32)).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x)
    prune = PruneConfig(target="storage")
    return JobConfig(str(tmp_path / "model.keras"), str(tmp_path / "out"), prune, data=str(tmp_path / "data.npz"))


def test_numbers_are_compared_by_their_fidelity(numbers):
    """Of two outputs, each of which counts alike; what the dense network gives is right."""
    methods = MAGNITUDE | {"fisher": PruneConfig(criterion="fisher", repair="none", target="storage")}
    methods["magnitude+least_squares"] = PruneConfig(repair="least_squares", target="storage")
    document = run(numbers, methods, [0.6], "0", "figure_3")
    assert document["data"]["task"] == "fidelity" and not document["data"]["labelled"]
    assert document["dense"]["top1"] == 1.0 and document["dense"]["n"] == 60
    scores = {cell["method"]: cell["alone"] for cell in document["cells"]}
    assert scores["magnitude+least_squares"]["top1"] > scores["magnitude"]["top1"] + 0.05
    for score in scores.values():
        low, high = score["top1_interval"]
        assert 0 <= low <= score["top1"] <= high <= 1
    page = pathlib.Path(numbers.output_dir, "compare.html").read_text()
    assert "fidelity to the dense model" in page and "What is predicted" not in page
    assert pathlib.Path(numbers.output_dir, "figure_3.svg").exists()


def test_a_figure_of_classes_needs_some(numbers):
    with pytest.raises(InputError, match=r"--preset=figure_4 shows classes\. Received: .+ whose outputs are numbers"):
        run(numbers, MAGNITUDE, [0.6], "0", "figure_4")


def test_a_figure_of_batch_norms_needs_some_and_one_of_curves_two_sparsities(job, tmp_path, left):
    inputs = layers.Input((8, 8, 3))
    found = layers.Dense(4, activation="softmax")(layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(inputs)))
    keras.Model(inputs, found).save(tmp_path / "model.keras")
    x = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 4)
    before = left()
    plain = dataclasses.replace(job, model=str(tmp_path / "model.keras"), data=str(tmp_path / "data.npz"))
    with pytest.raises(InputError, match=r"--preset=figure_3 shows batch norms\. Received: a network without any"):
        run(plain, MAGNITUDE, [0.6], "0", "figure_3")
    for name in ("figure_1", "figure_2", "figure_5"):
        with pytest.raises(InputError, match=rf"--preset={name} shows curves over sparsities, .*two\. Received: 1"):
            run(job, METHODS, [0.6, 0.6], "0", name)
    assert left() == before


PRESETS = {
    name: {method: read_method(method, PruneConfig()) for method in (BASELINE, *figure.methods)}
    for name, figure in FIGURES.items()
}


def test_a_figure_is_the_same_whatever_was_measured_before_it(job, tmp_path, monkeypatch):
    """SVG and CSV, to the last byte; the seconds of a cell differ, and so do compare.json and compare.html."""
    canned_cells(monkeypatch)
    monkeypatch.setattr(comparison, "study_kernels", lambda *given: ({}, {}))
    monkeypatch.setattr(comparison, "_render", lambda document: "")  # anew after each of 60 cells
    one, other = (dataclasses.replace(job, output_dir=str(tmp_path / name)) for name in ("one", "other"))
    names = ["figure_2", "table_1"]
    for name in names:
        run(one, PRESETS[name], [0.5, 0.8], "1", name)
    run(other, METHODS, [0.9, 0.8], "1")
    for name in reversed(names):
        run(other, dict(reversed(PRESETS[name].items())), [0.8, 0.5], "1", name)
    for name in names:
        drawn = [(tmp_path / folder / comparison.DRAWN[name]).read_bytes() for folder in ("one", "other")]
        assert drawn[0] == drawn[1], name
    with (tmp_path / "other" / "table_1.csv").open() as table:
        rows = [(float(row["sparsity"]), row["method"]) for row in csv.DictReader(table) if row["state"] == "alone"]
    assert rows == [(sparsity, method) for sparsity in (0.5, 0.8) for method in PRESETS["table_1"]]


@pytest.mark.slow
def test_figures_of_measured_cells_are_the_same_in_a_second_run(job, tmp_path):
    for folder, order in (("one", ("figure_3", "figure_4")), ("other", ("figure_4", "figure_3"))):
        for name in order:
            run(dataclasses.replace(job, output_dir=str(tmp_path / folder)), MAGNITUDE, [0.5, 0.8], "1", name)
    for name in ("figure_3.svg", "figure_4.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_starting_anew_removes_what_was_drawn(job, tmp_path, monkeypatch):
    canned_cells(monkeypatch)
    folder = tmp_path / "out"
    run(job, MAGNITUDE, [0.5, 0.8], "1", "figure_4")
    run(job, MAGNITUDE, [0.5, 0.8], "1", "figure_3")
    assert {"figure_3.svg", "figure_4.svg"} <= {path.name for path in folder.iterdir()}
    run(dataclasses.replace(job, overwrite=True), MAGNITUDE, [0.5], "1", "figure_4")
    left = {"compare.json", "compare.html", "compare.lock", "figure_4.svg"}
    assert {path.name for path in folder.iterdir()} == left


def test_closeness_is_what_the_relative_error_leaves():
    sums = np.array([[[1.0, 4.0, 4.0]], [[0.0, 4.0, 4.0]]])  # squared error, squares of the dense output, own
    found = score_closeness(sums)
    assert found.top1 == pytest.approx(1 - np.sqrt(1 / 8)) and found.n == 2
    assert score_closeness(np.array([[[9.0, 4.0, 1.0]]])).top1 == 0.0


def test_batch_norms_that_got_moments_first_are_told(numbers, monkeypatch):
    canned_cells(monkeypatch)
    model = keras.models.load_model(numbers.model)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert run(numbers, MAGNITUDE, [0.5], "0")["norms"] == {"paths": [norm.name for norm in norms], "unmerged": []}
    slope = norms[1].gamma / np.sqrt(norms[1].moving_variance + norms[1].epsilon)
    shift = norms[1].beta - slope * norms[1].moving_mean
    norms[1].set_weights([slope, shift, np.zeros(24), np.ones(24)])
    model.save(numbers.model)
    document = run(dataclasses.replace(numbers, overwrite=True), MAGNITUDE, [0.5], "0")
    assert document["norms"]["unmerged"] == [norms[1].name]
    assert format_table(document)[-1] == describe_unmerged(1)
    assert describe_unmerged(1) in pathlib.Path(numbers.output_dir, "compare.html").read_text()


def test_two_in_one_folder(job, tmp_path, monkeypatch):
    canned_cells(monkeypatch)
    words = r"in which no other comparison is running\. Received: "
    with locked(tmp_path / "out", comparison.LOCK, "comparison"), pytest.raises(InputError, match=words):
        run(job, MAGNITUDE, [0.5], "1")


def test_another_network_with_the_same_weights_is_another_one(job, tmp_path, monkeypatch):
    def rebuild(layer):
        return layers.ELU() if isinstance(layer, layers.ReLU) else type(layer).from_config(layer.get_config())

    canned_cells(monkeypatch)
    model, path = keras.models.load_model(job.model), tmp_path / "model.keras"
    job = dataclasses.replace(job, model=str(path))
    model.save(path)
    run(job, MAGNITUDE, [0.5], "1")
    twin = keras.models.clone_model(model, clone_function=rebuild)
    twin.set_weights(model.get_weights())
    twin.save(path)
    with pytest.raises(InputError, match=r"other settings, another network or other images"):
        run(job, METHODS, [0.5], "1")


def test_what_outputs_are_taken_for_is_a_setting(numbers, tmp_path, monkeypatch):
    canned_cells(monkeypatch)
    run(numbers, MAGNITUDE, [0.5], "1")
    assert from_json((tmp_path / "out" / comparison.JSON).read_bytes())["settings"]["task"] == "fidelity"


def test_a_network_of_the_zoo_is_the_same_however_often_it_was_built(job):
    """Keras numbers layers that have no name of their own through the whole process."""
    digests = {describe_settings(job, load_model("mobilenet_v2"), "1")["sha256"] for _ in range(2)}
    assert len(digests) == 1
