"""One run from a model file to a folder: what is in it, that it agrees with itself, and that it comes out again."""

import dataclasses
import errno
import json
import pathlib
import re
import resource
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.half_precision import allows_float16
from reflow_tf.export.operators import read_operators
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.benchmark import Benchmark, Measured
from reflow_tf.jobs.scoring import Ranked
from reflow_tf.models.graph import find_kernels
from reflow_tf.repair.choice import CANDIDATES
from reflow_tf.report import document, folder, limits
from reflow_tf.runtimes.latency import Spread
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.tools import prune


@dataclasses.dataclass(frozen=True)
class Results:
    """An output folder, read back."""

    folder: pathlib.Path

    @property
    def report(self):
        return json.loads((self.folder / "report.json").read_text("utf-8"))

    @property
    def plan(self):
        return PruningPlan.from_json((self.folder / "plan.json").read_text("utf-8"))

    @property
    def masks(self):
        with np.load(self.folder / "masks.npz") as archive:
            return {path: archive[path] for path in archive.files}

    @property
    def kernels(self):
        """Path -> kernel in the layout of Keras, of the model that was written."""
        found = find_kernels(keras.models.load_model(self.folder / "model.keras"))
        return {path: variable.numpy() for path, variable in found.variables.items()}

    @property
    def zeros(self):
        """Zeros in the kernels that were pruned."""
        return sum(int(np.count_nonzero(self.kernels[path] == 0)) for path in self.plan.layers)


@pytest.fixture(scope="module")
def run_job(inputs, tmp_path_factory):
    """Runs a job on the small model and returns its results."""

    def run(prune=None, **flags):
        folder = tmp_path_factory.mktemp("run") / "out"
        flags = {"model": inputs.model, "data": inputs.data, "preprocess": inputs.preprocess} | flags
        report = pipeline.run(JobConfig(output_dir=str(folder), prune=prune or PruneConfig(), **flags), ["a", "b"])
        results = Results(folder)
        assert results.report == report
        return results

    return run


@pytest.fixture(scope="module")
def base(run_job, inputs):
    """A run with labels and held-out data, everything else as it comes."""
    return run_job(eval_data=inputs.heldout)


def test_all_files_are_there_and_nothing_else(base):
    assert {file.name for file in base.folder.iterdir()} == pipeline.FILES
    assert [path.name for path in base.folder.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_plain_conversion_is_exported_once_and_once_in_float32(run_job, monkeypatch):
    exported, export_tflite = [], pipeline.export_tflite

    def export(model, **options):
        exported.append(options["quantize"])
        return export_tflite(model, **options)

    monkeypatch.setattr(pipeline, "export_tflite", export)
    run_job(PruneConfig(target="cpu", sparsity=0.0, repair="none"), quantize="int8")
    assert exported == ["int8", "none"]
    exported.clear()
    run_job(PruneConfig(target="cpu", sparsity=0.0, repair="reflow"), quantize="int8")
    assert exported == ["int8", "none", "int8"]


def test_the_report_keeps_to_its_schema_and_to_the_truth(base):
    report = base.report
    document.validate(report)
    assert report["command"] == ["a", "b"]
    assert report["data"]["calibration"]["num_images"] == 96 and report["data"]["evaluation"]["num_images"] == 96
    assert report["accuracy"]["dense"]["top1"] == 1.0, "the labels are this model's predictions"
    assert {score["n"] for score in report["accuracy"].values()} == {96} and report["agreement"] is None
    assert report["accuracy"]["file"]["top1"] == report["accuracy"]["repaired"]["top1"] and report["parity"]["n"] == 96
    assert report["parity"]["max_abs"] < 1e-5 and report["parity"]["top1_agreement"] == 1.0
    assert report["gate"] == {
        "max_accuracy_drop": None,
        "passed": None,
        "n": 96,
        "drop_points": round(100 * (1 - report["accuracy"]["file"]["top1"]), 4),
    }
    for predictions in report["signal"]["predictions"].values():
        assert sum(predictions["histogram"]) == 96
    assert [layer["path"] for layer in report["signal"]["layers"]] == ["norm_0", "norm_1", "norm_2"]
    (step,) = report["repair"]["steps"]
    assert report["repair"]["name"] == step["name"] == "reflow" and report["repair"]["tried"] == []
    assert step["num_layers"] == 3 and step["moved"] == ["moving_mean", "moving_variance"]
    assert {skipped["path"]: skipped["reason"] for skipped in report["skipped"]} == {
        "conv_0/kernel": "XNNPACK runs no conv sparse",
        "classes/kernel": "XNNPACK runs no dense sparse",
    }


def test_sizes_are_those_of_the_files(base):
    assert base.report["size_bytes"]["file"] == (base.folder / "model.tflite").stat().st_size


def test_plan_masks_model_file_and_report_tell_the_same(base):
    masks, report = base.masks, base.report
    assert set(base.plan.layers) == set(masks) == {"conv_1/kernel", "conv_2/kernel"}
    for path, mask in masks.items():
        np.testing.assert_array_equal(base.kernels[path] != 0, mask)
        assert base.plan.layers[path].sparsity == np.mean(~mask)
    by_path = {layer["path"]: layer for layer in report["sparsity"]["layers"]}
    assert {path: layer["num_zeros"] for path, layer in by_path.items()} == {
        path: np.count_nonzero(~mask) for path, mask in masks.items()
    }
    num_weights = sum(mask.size for mask in masks.values())
    assert base.zeros == round(0.7 * num_weights)
    assert report["sparsity"]["achieved"] == base.zeros / num_weights
    assert [(check["path"], check["ok"], check["num_masked"]) for check in report["masks_in_file"]] == [
        (path, True, np.count_nonzero(~mask)) for path, mask in masks.items()
    ]


def test_only_moments_and_masked_weights_differ_from_the_model_that_was_given(base, inputs):
    before = {v.path: v.numpy() for v in keras.models.load_model(inputs.model).weights}
    after = {v.path: v.numpy() for v in keras.models.load_model(base.folder / "model.keras").weights}
    assert set(before) == set(after)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    moments = {f"norm_{depth}/moving_{moment}" for depth in range(3) for moment in ("mean", "variance")}
    assert changed == moments | {"conv_1/kernel", "conv_2/kernel"}


def test_config_json_holds_what_was_resolved(base, inputs):
    config = json.loads((base.folder / "config.json").read_text("utf-8"))
    assert config == base.report["config"]
    assert (config["sparsity"], config["pattern"], config["model"]) == (0.7, "unstructured", inputs.model)
    assert config["preprocessing"]["scaling"] == "tf" and config["preprocessing"]["size"] == [8, 8]


def test_the_page_needs_nothing_from_elsewhere(base):
    page = (base.folder / "report.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert not re.search(r"@import|url\((?!#|['\"]?data:)", page)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert all("www.w3.org" in address or f'href="{address}' in page for address in addresses), "links may be followed"


def comparable(report):
    report = {name: value for name, value in report.items() if name not in ("created", "seconds", "command")}
    report["config"] = {name: value for name, value in report["config"].items() if name != "output_dir"}
    return report


def test_a_second_run_gives_the_same(base, run_job, inputs):
    again = run_job(eval_data=inputs.heldout)
    for name in ("plan.json", "model.tflite"):
        assert (again.folder / name).read_bytes() == (base.folder / name).read_bytes()
    for path, mask in again.masks.items():
        np.testing.assert_array_equal(mask, base.masks[path])
    assert comparable(again.report) == comparable(base.report)


@pytest.mark.slow
def test_another_seed_draws_other_images(run_job):
    reports = [run_job(seed=seed, calibration_samples=20).report for seed in (0, 1)]
    assert reports[0]["signal"] != reports[1]["signal"]
    assert reports[0]["data"]["calibration"]["num_images"] == 20 and reports[0]["accuracy"]["dense"]["n"] == 76


def test_the_seed_reaches_random_weights(tmp_path, monkeypatch):
    drawn = []

    def load_model(*args, **kwargs):
        drawn.append(float(keras.random.uniform(())))
        raise InputError("seen enough")

    monkeypatch.setattr(pipeline, "load_model", load_model)
    for seed in (3, 3, 4):
        with pytest.raises(InputError, match="seen enough"):
            pipeline.run(JobConfig("resnet20", str(tmp_path / "out"), weights="random", seed=seed))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "prune, num_pruned",
    [
        (PruneConfig(pattern=patterns.parse("nm:2,4")), 2),
        (PruneConfig(pattern=patterns.parse("block:4x1"), sparsity=0.5), 2),
        (PruneConfig(pattern=patterns.parse("channel"), sparsity=0.5), 2),
        (PruneConfig(target="storage", allocation="erk", sparsity=0.5), 4),
        (PruneConfig(prunable="all", allocation="uniform", sparsity=0.5), 4),
        (PruneConfig(prunable="^conv_[02]/", allocation="lamp", sparsity=0.5), 2),
    ],
    ids=lambda value: (
        f"{value.requested_pattern}-{value.target}-{value.allocation}" if isinstance(value, PruneConfig) else ""
    ),
)
def test_patterns_targets_and_allocations(run_job, prune, num_pruned):
    results = run_job(prune)
    report, masks = results.report, results.masks
    assert len(masks) == num_pruned and len(report["skipped"]) == 4 - num_pruned
    assert all(check["ok"] for check in report["masks_in_file"])
    specs = {spec.path: spec for spec in find_kernels(keras.models.load_model(results.folder / "model.keras")).specs}
    for path, mask in masks.items():
        assert prune.requested_pattern.admits(specs[path].to_canonical(mask))
        np.testing.assert_array_equal(results.kernels[path] != 0, mask)
        assert str(results.plan.layers[path].pattern) == str(prune.requested_pattern)
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "flags", [{}, {"target": "storage"}, {"target": "tflm"}, {"target": "ethos_u"}], ids=lambda flags: str(flags)
)
def test_a_narrower_network_is_written_and_told(run_job, inputs, flags):
    config = PruneConfig(pattern=patterns.parse("channel"), max_macs=0.7, channel_multiple=1, **flags)
    results = run_job(config, eval_data=inputs.heldout)
    report, before = results.report, keras.models.load_model(inputs.model)
    after = keras.models.load_model(results.folder / "model.keras")
    assert after.count_params() == report["model"]["num_parameters"] < before.count_params()
    narrowing = report["narrowing"]
    assert narrowing["num_parameters_before"] == before.count_params()
    assert narrowing["macs_after"] <= 0.7 * narrowing["macs_before"]
    assert report["size_bytes"]["file"] < report["size_bytes"]["dense_file"]
    shapes = {path: variable.shape for path, variable in find_kernels(before).variables.items()}
    assert results.masks and all(shapes[path.removeprefix("channels/")] == m.shape for path, m in results.masks.items())
    assert report["masks_in_file"] == [] and report["sparsity"]["layers"] == []
    if not flags:
        assert report["target"]["statement"].startswith("A narrower network") and not report["target"]["blockers"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflm", "ethos_u", "cortex_m"])
def test_channels_leave_until_flash_and_ram_suffice(request, run_job, inputs, target):
    if target == "cortex_m":
        request.getfixturevalue("cortex_m")
    config = PruneConfig(pattern=patterns.parse("channel"), max_macs="auto", channel_multiple=1, target=target)
    full = run_job(PruneConfig(target=target, sparsity=0.0, repair="none"), eval_data=inputs.heldout).report["mcu"]
    for name, taken in (("flash_budget", full["flash_bytes"]), ("ram_budget", full["arena_bytes"])):
        budget = int(0.9 * taken)
        report = run_job(config, eval_data=inputs.heldout, **{name: budget}).report
        assert report["mcu"]["passed"] is True
        assert 0 < report["narrowing"]["macs_after"] < report["narrowing"]["macs_before"]


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_channels_leave_until_the_file_is_small_enough(run_job, inputs, quantize):
    """For any target, in any format; nothing was estimated, and the file has what was asked for."""
    given = {"eval_data": inputs.heldout, "quantize": quantize}
    dense = run_job(PruneConfig(target="storage", sparsity=0.0, repair="none"), **given)
    most = (dense.folder / "model.tflite").stat().st_size - 400
    channel = patterns.parse("channel")
    config = PruneConfig(
        pattern=channel, max_macs="auto", channel_multiple=1, target="storage", max_size_bytes=most, repair="none"
    )
    results = run_job(config, **given)
    document.validate(results.report)
    size = (results.folder / "model.tflite").stat().st_size
    expected = {"name": "max_size_bytes", "value": most, "estimate": None, "measured": size, "passed": True}
    assert results.report["budget"] == expected and size <= most
    assert results.report["narrowing"]["macs_after"] < results.report["narrowing"]["macs_before"]
    said = limits.budget_sentence(results.report)
    assert said is not None and said.startswith(f"--max_size_bytes={most} was kept: the file has {size:,} bytes.")
    with pytest.raises(
        InputError, match=r"as it can be, --max_size_bytes must be at least \d+\. Received: --max_size_bytes=9"
    ):
        run_job(dataclasses.replace(config, max_size_bytes=9), **given)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_budget_holds_with_the_biases_that_a_repair_gives(run_job, classifier, inputs, tmp_path, quantize):
    """A converter leaves zeros out, or stores them once."""
    model = keras.models.clone_model(classifier(batch_norms=False), clone_function=_with_bias)
    given = {"model": str(tmp_path / "biased.keras"), "eval_data": inputs.heldout, "quantize": quantize}
    model.save(given["model"])
    dense = run_job(PruneConfig(target="storage", sparsity=0.0, repair="none"), **given)
    whole = (dense.folder / "model.tflite").stat().st_size
    channel = patterns.parse("channel")
    for less in (100, 300):
        config = PruneConfig(
            pattern=channel,
            max_macs="auto",
            channel_multiple=1,
            target="storage",
            max_size_bytes=whole - less,
            repair="least_squares",
        )
        assert run_job(config, **given).report["budget"]["passed"], less


def _with_bias(layer):
    is_convolution = isinstance(layer, keras.layers.Conv2D)
    return type(layer).from_config(layer.get_config() | ({"use_bias": True} if is_convolution else {}))


def test_a_budget_that_no_width_meets(run_job, inputs):
    config = PruneConfig(pattern=patterns.parse("channel"), max_macs="auto", channel_multiple=1, target="tflm")
    with pytest.raises(InputError, match=r"can be, --ram_budget must be at least \d+\. Received: --ram_budget=10$"):
        run_job(config, eval_data=inputs.heldout, ram_budget=10)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"target": "tflm"}, {"repair": "auto"}], ids=lambda flags: str(flags))
def test_narrower_first_and_sparse_then(run_job, inputs, flags):
    config = PruneConfig(max_macs=0.7, sparsity=0.5, channel_multiple=1, **flags)
    results = run_job(config, eval_data=inputs.heldout)
    report, before = results.report, keras.models.load_model(inputs.model)
    document.validate(report)
    assert report["narrowing"]["macs_after"] <= 0.7 * report["narrowing"]["macs_before"]
    assert report["sparsity"]["requested"] == 0.5
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.01)
    assert report["masks_in_file"] and all(check["ok"] for check in report["masks_in_file"])
    shapes = {path: variable.shape for path, variable in find_kernels(before).variables.items()}
    for path, mask in results.masks.items():
        if path.startswith("channels/"):
            assert mask.shape == shapes[path.removeprefix("channels/")]
        else:
            np.testing.assert_array_equal(results.kernels[path] != 0, mask)
    names = {path.partition("/")[0] == "channels" for path in results.masks}
    assert names == {True, False}
    page = (results.folder / "report.html").read_text("utf-8")
    assert 'id="channels"' in page and 'id="sparsity"' in page


@pytest.mark.parametrize("quantize, tolerance", [("float16", 1e-2), ("int8", 0.5)])
def test_quantization(base, run_job, inputs, quantize, tolerance):
    config = PruneConfig(target="storage", prunable="conv_[12]")  # the same kernels as for xnnpack, which takes no int8
    report = run_job(config, eval_data=inputs.heldout, quantize=quantize).report
    assert all(check["ok"] for check in report["masks_in_file"])
    assert 0 < report["parity"]["max_abs"] < tolerance and report["parity"]["top1_agreement"] > 0.8
    assert {tensor["dtype"] for tensor in report["file"]["tensors"]} & {quantize}
    assert report["accuracy"]["repaired"] == base.report["accuracy"]["repaired"], "quantized after the repair"


def test_nothing_to_prune(run_job):
    report = run_job(PruneConfig(sparsity=0.0)).report
    assert report["sparsity"]["achieved"] == 0 and report["accuracy"]["pruned"]["top1"] == 1.0


def test_whole_layers_become_zero(run_job):
    report = run_job(PruneConfig(sparsity=0.999, target="storage")).report
    assert report["signal"]["collapsed_before"] and report["signal"]["collapsed_after"]
    assert any("Every weight of these kernels is zero" in note for note in report["notes"])
    assert all(check["ok"] for check in report["masks_in_file"])


def test_without_labels_agreement_replaces_accuracy(run_job, inputs):
    report = run_job(data=inputs.unlabelled).report
    assert report["accuracy"] is None and set(report["agreement"]) == {"pruned", "repaired", "file"}
    assert report["data"]["evaluation"] == {
        "description": f"{inputs.unlabelled}, held out",
        "num_images": 24,
        "labelled": False,
    }
    assert report["gate"]["drop_points"] == round(100 * (1 - report["agreement"]["file"]["top1"]), 4)


@pytest.mark.slow
def test_labels_are_needed_for_one_side_only(run_job, inputs):
    assert run_job(eval_data=inputs.unlabelled).report["accuracy"] is None
    assert run_job(data=inputs.unlabelled, eval_data=inputs.heldout).report["accuracy"]["dense"]["top1"] == 1.0


def test_a_model_without_batch_norms_is_told_so(run_job, classifier, tmp_path):
    classifier(batch_norms=False).save(tmp_path / "plain.keras")
    report = run_job(model=str(tmp_path / "plain.keras")).report
    (step,) = report["repair"]["steps"]
    assert "nothing to restore" in step["statement"] and step["num_layers"] == 0
    assert report["accuracy"]["repaired"] == report["accuracy"]["pruned"] and report["signal"]["layers"] == []


def test_no_repair(run_job):
    report = run_job(PruneConfig(repair="none")).report
    assert (
        report["repair"]["steps"][0]["moved"] == [] and report["accuracy"]["repaired"] == report["accuracy"]["pruned"]
    )


@pytest.mark.slow
def test_auto_tells_what_it_tried_and_what_it_took(run_job):
    report = run_job(PruneConfig(repair="auto", criterion="activation")).report
    tried = {each["chain"]: each["divergence"] for each in report["repair"]["tried"]}
    assert set(tried) == set(CANDIDATES)
    winner = min(tried, key=tried.get)
    assert [step["name"] for step in report["repair"]["steps"]] == ["auto", *winner.split(",")]
    assert f"auto chose {winner}: on 6 calibration" in report["repair"]["steps"][0]["statement"]
    assert all(check["ok"] for check in report["masks_in_file"]) and "statistics" in report["seconds"]


def test_an_open_size_is_fixed_as_the_images_are(run_job, classifier, tmp_path):
    classifier(size=None).save(tmp_path / "open.keras")
    results = run_job(model=str(tmp_path / "open.keras"))
    assert results.report["parity"]["max_abs"] < 1e-4


def test_two_classes_grey_images_and_a_larger_batch(run_job, classifier, images, tmp_path):
    classifier(num_classes=2, channels=1).save(tmp_path / "two.keras")
    np.savez(tmp_path / "two.npz", x=images(30, seed=0, channels=1), y=np.arange(30) % 2)
    flags = {"model": str(tmp_path / "two.keras"), "data": str(tmp_path / "two.npz")}
    report = run_job(**flags, export_batch_size=4, batch_size=1).report
    assert report["file"]["batch_size"] == 4 and report["parity"]["n"] == 15
    assert report["accuracy"]["dense"]["top5"] is None


@keras.saving.register_keras_serializable("reflow_tf_tests")
class Registered(keras.Model):
    """A subclassed model that a .keras file can hold."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convs = [keras.layers.Conv2D(8, 1, name=f"conv_{depth}") for depth in range(2)]
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.classes = keras.layers.Dense(4, activation="softmax", name="classes")

    def call(self, x, training=False):
        for conv in self.convs:
            x = conv(x)
        return self.classes(keras.ops.mean(keras.ops.relu(self.norm(x, training=training)), (1, 2)))


def build_nested():
    image = keras.Input((8, 8, 3))
    block = [keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 1), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    inner = keras.Sequential(block, name="inner")
    x = keras.layers.Conv2D(4, 1)(inner(inner(image)))
    return keras.Model(image, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("build", [Registered, build_nested])
def test_subclassed_and_nested_models(run_job, images, tmp_path, build):
    keras.utils.set_random_seed(0)
    model = build()
    model(images(2, seed=0).astype(np.float32))
    model.save(tmp_path / "model.keras")
    results = run_job(model=str(tmp_path / "model.keras"))
    assert results.report["repair"]["steps"][0]["num_layers"] == 1 and len(results.masks) == 2
    assert results.report["parity"]["max_abs"] < 1e-4 and results.report["parity"]["top1_agreement"] == 1.0
    assert all(check["ok"] for check in results.report["masks_in_file"])


@pytest.mark.parametrize(("precision", "repair"), [("mixed_float16", "least_squares"), ("mixed_bfloat16", "reflow")])
def test_mixed_precision(run_job, classifier, tmp_path, precision, repair):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        classifier().save(tmp_path / "mixed.keras")
    finally:
        keras.config.set_dtype_policy(before)
    report = run_job(PruneConfig(repair=repair), model=str(tmp_path / "mixed.keras")).report
    assert report["parity"]["max_abs"] < 1e-5 and all(check["ok"] for check in report["masks_in_file"])


def test_images_in_folders_and_results_among_them(inputs, images, tmp_path):
    for index, image in enumerate(images(16, seed=4, size=11)):
        path = tmp_path / "photos" / "abcd"[index % 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    before = sorted(tmp_path.rglob("*"))
    job = JobConfig(inputs.model, str(tmp_path / "photos" / "out"), data=str(tmp_path / "photos"))
    report = pipeline.run(job)
    assert report["data"]["evaluation"] == {
        "description": f"{tmp_path / 'photos'}, held out",
        "num_images": 8,
        "labelled": True,
    }
    assert [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.parts] == before


def test_the_gate(command, inputs, tmp_path):
    flags = {"model": inputs.model, "data": inputs.data, "preprocess": inputs.preprocess, "sparsity": 0.99}
    outcome = command(prune, **flags, target="storage", output_dir=tmp_path / "out", max_accuracy_drop=1)
    assert outcome.code == 3
    assert re.fullmatch(r"error: the file lost \d+\.\d\d points; --max_accuracy_drop allows 1", outcome.error)
    assert {file.name for file in (tmp_path / "out").iterdir()} == pipeline.FILES
    report = Results(tmp_path / "out").report
    assert report["gate"]["passed"] is False and report["gate"]["drop_points"] > 1
    assert (
        report["command"][:3] == ["python", "-m", "reflow_tf.tools.prune"]
        and "--max_accuracy_drop=1" in report["command"]
    )
    again = command(
        prune, **flags, target="storage", output_dir=tmp_path / "out", overwrite=True, max_accuracy_drop=100
    )
    assert again.code == 0 and Results(tmp_path / "out").report["gate"]["passed"] is True


def test_the_gate_without_labels_looks_at_agreement(command, inputs, tmp_path):
    flags = {"model": inputs.model, "data": inputs.unlabelled, "preprocess": inputs.preprocess}
    outcome = command(prune, **flags, sparsity=0.99, target="storage", output_dir=tmp_path, max_accuracy_drop=0)
    assert outcome.code == 3 and Results(tmp_path).report["agreement"]["file"]["top1"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("quantize, most", [("none", 6500), ("float16", 6200)])
def test_the_file_is_as_small_as_was_asked(run_job, quantize, most):
    config = PruneConfig(target="storage", max_size_bytes=most)
    results = run_job(config, quantize=quantize)
    budget, size = results.report["budget"], (results.folder / "model.tflite").stat().st_size
    assert budget == {
        "name": "max_size_bytes",
        "value": config.max_size_bytes,
        "estimate": budget["estimate"],
        "measured": size,
        "passed": True,
    }
    assert size <= budget["estimate"] <= config.max_size_bytes < size + 600, "no sparser than it had to be"
    assert results.report["sparsity"]["requested"] is None and results.report["config"]["sparsity"] is None
    assert 0 < results.report["sparsity"]["achieved"] < 0.9


def test_a_file_that_came_out_larger_than_asked(command, inputs, tmp_path, monkeypatch):
    """What else can be: a file that must be stored dense."""
    monkeypatch.setattr("reflow_tf.export.stored_zeros.compute_same", lambda *_: False)
    flags = {"model": inputs.model, "data": inputs.data, "preprocess": inputs.preprocess, "target": "storage"}
    outcome = command(prune, **flags, output_dir=tmp_path / "out", max_size_bytes=7000)
    report = Results(tmp_path / "out").report
    assert outcome.code == 3 and report["budget"]["passed"] is False
    assert re.match(r"error: --max_size_bytes=7000 was missed: the file has [\d,]+ bytes; 6,9\d\d were", outcome.error)
    assert re.search(r"The largest parts are \S+conv_2\S+ \(2.30 kB, dense\), ", outcome.error)
    assert {file.name for file in (tmp_path / "out").iterdir()} == pipeline.FILES


@pytest.fixture
def fast(run_job, strided, images, tmp_path, monkeypatch):
    """A job on a network that XNNPACK can run sparse, and a browser that finds it so many times as fast."""
    np.savez(tmp_path / "photos.npz", x=images(64, seed=1, size=32))

    def run(measured=None, **settings):
        def measure(job, name, content, dense):
            costs = [_measured("dense", measured, None), _measured("file", 1.0, Spread(measured, measured, measured))]
            return Benchmark("Chromium", "ms", 1, 1, 0, costs[0], (costs[1],))

        monkeypatch.setattr(pipeline, "require_runtime", lambda name: None)
        monkeypatch.setattr(pipeline, "_time", measure)
        benchmark = ("web",) if measured else ()
        config = PruneConfig(min_speedup=1.3, **settings)
        return run_job(config, model=strided, data=str(tmp_path / "photos.npz"), benchmark=benchmark).report

    return run


def _measured(label, cost, speedup):
    return Measured(label, 1, (cost,), Spread(cost, cost, cost), speedup, 0.0, True, None)


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["global", "uniform", "auto"])
def test_the_file_is_estimated_to_be_as_fast_as_was_asked(fast, allocation):
    report = fast(allocation=allocation)
    budget = report["budget"]
    assert budget["estimate"] >= 1.3 and budget["measured"] is None and budget["passed"] is None
    assert report["target"]["eligible"] and min(report["target"]["speedups"].values()) >= 1.3


@pytest.mark.slow
def test_a_speed_is_measured_where_that_is_asked_too(fast):
    assert fast(measured=1.4)["budget"]["passed"] is True
    report = fast(measured=1.2)
    assert report["budget"]["measured"] == 1.2 and report["budget"]["passed"] is False


@pytest.mark.parametrize("name", sorted(pipeline.FILES))
def test_a_disk_that_is_full_at_any_file(base, command, inputs, tmp_path, left, monkeypatch, name):
    """At each of the files in turn; what a run wrote stands for what it would write."""
    out = tmp_path / "out"
    shutil.copytree(base.folder, out)
    before = left()
    write = folder._write_file

    def fill(path, content):
        write(path, content)
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write_results(job, command):
        contents = {file.name: file.read_bytes() for file in base.folder.iterdir()}
        folder.OutputFolder(job.output_dir, pipeline.FILES, job.overwrite).write(contents)

    monkeypatch.setattr(folder, "_write_file", fill)
    monkeypatch.setattr(pipeline, "run", write_results)
    outcome = command(prune, model=inputs.model, output_dir=out, overwrite=True)
    assert outcome.code == 2 and outcome.error.endswith(f"(No space left on device). Received: {out}")
    assert left() == before


def test_a_disk_that_is_full_when_keras_writes(command, inputs, tmp_path, left):
    """For real: the system lets no file grow over 20 kB, and model.keras wants more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        outcome = command(prune, model=inputs.model, data=inputs.data, output_dir=tmp_path / "x" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2 and outcome.error.endswith(f"(File too large). Received: {tmp_path / 'x' / 'out'}")
    assert left() == {}


def test_a_folder_that_appears_meanwhile_is_not_replaced(inputs, tmp_path, monkeypatch):
    render = pipeline.render

    def render_slowly(*args):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("x")
        return render(*args)

    monkeypatch.setattr(pipeline, "render", render_slowly)
    with pytest.raises(InputError, match="must not exist yet"):
        pipeline.run(JobConfig(inputs.model, str(tmp_path / "out"), data=inputs.data))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_what_stands_in_the_way_is_told_before_and_after(run_job, capsys):
    report = run_job().report
    target = report["target"]
    assert (target["name"], target["eligible"], target["fits"]) == ("xnnpack", False, False)
    assert target["speedups"] == {"browser": 1, "arm": 1} and target["blockers"] == target["before"]["blockers"]
    assert "conv_0" in {blocker["operator"] for blocker in target["blockers"]}
    assert report["latency"] == report["instructions"] == {}
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and target["before"]["statement"] in notes[0]


def test_a_network_as_keras_pads_it_becomes_eligible(run_job, strided, images, tmp_path, capsys):
    np.savez(tmp_path / "photos.npz", x=images(64, seed=1, size=32))
    job = {"model": strided, "data": str(tmp_path / "photos.npz")}
    report = run_job(PruneConfig(sparsity=0.8), **job).report
    target = report["target"]
    assert target["eligible"] and target["fits"] and not target["before"]["fits"] and target["rewrite"] == "exact"
    assert [rewrite["rewrite"] for rewrite in target["rewrites"]] == ["rotation"]
    assert min(target["speedups"].values()) > 1
    assert any("Never force float16" in note for note in report["notes"])
    (cluster,) = target["clusters"]
    assert cluster["runs_sparse"] and cluster["num_zeros"] == round(0.8 * cluster["num_weights"])
    assert report["parity"]["top1_agreement"] == 1 and report["parity"]["max_abs"] < 1e-5
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert note.startswith("note: With --preprocess=")  # this network knows no images, and nothing stands in the way
    # Left as Keras pads it, the same zeros gain nothing.
    target = run_job(PruneConfig(sparsity=0.8), rewrite="none", **job).report["target"]
    assert not target["eligible"] and target["rewrites"] == []
    assert {blocker["remedy"] for blocker in target["blockers"]} == {target["before"]["blockers"][0]["remedy"]}


@pytest.mark.slow
@pytest.mark.usefixtures("web", "aarch64")
def test_the_file_is_measured_beside_the_dense_one(run_job, strided, images, tmp_path):
    np.savez(tmp_path / "photos.npz", x=images(64, seed=1, size=32))
    job = {"model": strided, "data": str(tmp_path / "photos.npz")}
    results = run_job(PruneConfig(sparsity=0.9), benchmark=("web", "aarch64"), **job)
    report = results.report
    timed, counted = report["latency"]["web"], report["instructions"]["aarch64"]
    assert "LiteRT.js" in timed["runtime"] and timed["rounds"] > 10
    assert timed["dense_quartiles_ms"][0] <= timed["dense_ms"] <= timed["dense_quartiles_ms"][1]
    assert timed["speedup_quartiles"][0] <= timed["speedup"] <= timed["speedup_quartiles"][1]
    assert "cortex" in counted["runtime"]
    assert counted["ratio"] == pytest.approx(counted["dense"] / counted["file"])
    assert counted["ratio"] > 1.2, "fewer instructions than the dense file, flip and all"
    assert "LiteRT.js" in (results.folder / "report.html").read_text("utf-8")


def test_a_runtime_that_is_missing_is_told_before_any_work(run_job, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pipeline, "load_model", lambda *_, **__: pytest.fail("the work began"))
    for name in ("web", "aarch64"):
        with pytest.raises(InputError, match="Received: "):
            run_job(benchmark=(name,))


@pytest.mark.usefixtures("web")
def test_a_measurement_that_fails_does_not_cost_the_results(run_job, monkeypatch):
    def fail(*_, **__):
        raise InputError("The browser must live. Received: a crash")

    monkeypatch.setattr(pipeline, "measure_files", fail)
    report = run_job(benchmark=("web",)).report
    assert report["latency"] == {}
    assert "Not measured with --benchmark=web: The browser must live. Received: a crash" in report["notes"]


def test_a_network_of_which_the_target_rewards_nothing_is_refused_before_anything_is_announced(
    run_job, classifier, tmp_path, capsys
):
    classifier(widths=(8,)).save(tmp_path / "plain.keras")
    with pytest.raises(InputError, match=r"Take --target=storage, .* or --prunable=all\. Received: --target=xnnpack, "):
        run_job(model=str(tmp_path / "plain.keras"))
    said = capsys.readouterr().err
    assert "goes on" not in said and "Exporting" not in said


def test_a_model_in_dicts_with_names_that_tensorflow_refuses(run_job, classifier, tmp_path):
    model = classifier()
    outputs = {"probs": model.outputs[0]}
    keras.Model({model.inputs[0].name: model.inputs[0]}, outputs, name="_größe 1").save(tmp_path / "dicts.keras")
    report = run_job(model=str(tmp_path / "dicts.keras")).report
    assert report["masks_in_file"] and all(check["ok"] for check in report["masks_in_file"])


def test_a_network_without_anything_that_runs_sparse_is_reported_as_well(run_job, classifier, tmp_path):
    classifier(widths=(8,)).save(tmp_path / "plain.keras")
    report = run_job(PruneConfig(prunable="all"), model=str(tmp_path / "plain.keras")).report
    target = report["target"]
    assert not target["eligible"] and not target["fits"] and target["clusters"] == []
    assert any("no 1x1 convolution" in blocker["reason"] for blocker in target["blockers"])


def test_stages_are_scored_on_as_many_images_as_the_report_says(run_job, monkeypatch):
    monkeypatch.setattr(pipeline, "SIGNAL_IMAGES", 20)
    report = run_job().report
    assert {stage: score["n"] for stage, score in report["accuracy"].items()} == {
        "dense": 48,
        "pruned": 20,
        "repaired": 48,  # its file is measured
        "file": 48,
    }
    assert report["signal"]["n"] == 20 and report["gate"]["n"] == 48
    assert sum(report["signal"]["predictions"]["pruned"]["histogram"]) == 20
    for score in report["accuracy"].values():  # the labels are the dense network's own
        assert score["drop_points"] == round(100 * (1 - score["top1"]), 4)
    half = run_job(quantize="float16").report
    assert half["accuracy"]["repaired"]["n"] == 20 and half["accuracy"]["dense"] == report["accuracy"]["dense"]


def test_a_file_that_is_not_the_keras_model_is_told(run_job, monkeypatch):
    rank_files = pipeline.rank_files

    def rank_others(*args, **options):
        found = rank_files(*args, **options)
        return found | {"dense": Ranked(found["dense"].positions, np.roll(found["dense"].classes, 1, axis=0))}

    assert not [note for note in run_job().report["notes"] if "as Keras" in note]
    monkeypatch.setattr(pipeline, "rank_files", rank_others)
    assert [note for note in run_job().report["notes"] if note.startswith("The dense model's file names the same")]


def test_a_float16_file_without_sparse_tensors_is_tried_in_float16(aarch64, run_job):
    report = run_job(PruneConfig(target="cpu", prunable="all", sparsity=0.1), quantize="float16").report
    checked = report["file"]["in_float16"]
    assert checked["num_inputs"] == 8 and 0 < checked["difference"] < 0.05 and checked["agreement"] >= 0.875
    assert "cortex-a76" in checked["runtime"]
    assert any("lets CPUs compute in float16. So computed" in note for note in report["notes"])


@pytest.mark.slow
def test_values_that_float16_cannot_hold_forbid_it(aarch64, run_job, settled, tmp_path):
    """Batch norm takes back what the kernel is scaled by, and what is between is past 65,504."""
    model = keras.models.clone_model(settled[0])
    model.set_weights(settled[0].get_weights())
    norm = model.get_layer("norm_1")
    size = np.float32(1e8)
    norm.gamma.assign(norm.gamma * size)
    norm.beta.assign(norm.beta * size)
    following = model.get_layer("conv_2")
    following.kernel.assign(following.kernel / size)
    model.save(tmp_path / "large.keras")
    prune = PruneConfig(target="cpu", prunable="all", sparsity=0.1)
    results = run_job(prune, model=str(tmp_path / "large.keras"), quantize="float16")
    assert results.report["file"]["in_float16"]["difference"] is None
    assert not allows_float16((results.folder / "model.tflite").read_bytes())
    assert any("does not allow float16 arithmetic" in note for note in results.report["notes"])


def test_without_such_a_cpu_the_report_says_that_it_was_not_tried(run_job, monkeypatch):
    monkeypatch.setattr("reflow_tf.jobs.float16_arithmetic.is_set_up", lambda: False)
    report = run_job(PruneConfig(target="cpu", prunable="all", sparsity=0.1), quantize="float16").report
    assert report["file"]["in_float16"] is None
    assert any("were not checked" in note and "setup_runtime" in note for note in report["notes"])


def test_an_int8_file_with_floats_at_its_ends(run_job):
    results = run_job(PruneConfig(target="cpu", prunable="all", sparsity=0.1))
    graph = read_operators((results.folder / "model.tflite").read_bytes())
    assert [graph.values[index].dtype for index in (*graph.inputs, *graph.outputs)] == ["float32", "float32"]
    assert results.report["target"]["statement"] == "CPUs run this file in int8, with dense kernels."
    assert results.report["config"]["io"] == "float"
