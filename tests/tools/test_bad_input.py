"""Whatever is wrong with what a user gives: one line that names it, exit code 2, and nothing on the disk touched."""

import pathlib

import pytest

from reflow_tf.tools import prune

# (flags that differ from a good call, what the line says); {m}, {d} and {i} are the folders of models, data and inputs.
MODELS = {
    "unknown name": ("--model=mobilenet_v9", "Did you mean mobilenet_v2? Received: mobilenet_v9"),
    "missing path": ("--model={m}/none.keras", "must be an existing file. Received: {m}/none.keras"),
    "a folder": ("--model={m}", "must be a file, or the folder of a SavedModel; this is neither. Received: {m}"),
    "another suffix": ("--model={d}/names.txt", "Received: {d}/names.txt"),
    "text in a .keras": ("--model={m}/text.keras", "must be a complete .keras file"),
    "text in a .h5": ("--model={m}/text.h5", "must be a complete HDF5 file"),
    "half of a .keras": ("--model={m}/truncated.keras", "Received: {m}/truncated.keras"),
    "weights alone": ("--model={m}/only.weights.h5", "Received: {m}/only.weights.h5"),
    "a Lambda": ("--model={m}/lambda.keras", "this tool never switches safe mode off"),
    "NaN": ("--model={m}/nan.keras", "in layer 'conv_1', variable 'kernel' is not. Received: 24 of 192 values NaN"),
    "infinity": ("--model={m}/infinite.keras", "in layer 'conv_1', variable 'kernel'"),
    "overflow": ("--model={m}/overflowing.keras", "must be finite"),
    "overflow, not repaired": ("--model={m}/overflowing.keras --repair=none", "must be finite"),
    "one output unit": ("--model={m}/one_output.keras", "must be a classifier"),
    "two inputs": ("--model={m}/two_inputs.keras", "must hold each of them: x_"),
    "two heads": ("--model={m}/two_heads.keras --task=classification", "needs one output. Received: {m}/two_heads"),
    "a state between batches": ("--model={m}/stateful.keras", "must not keep a state from one batch to the next"),
    "complex numbers": ("--model={m}/complex.keras", "Every input must be of real numbers. Received: "),
    "one number for all images": ("--model={m}/of_batch.keras", "Every output must have an axis of samples. "),
    "quantized by Keras": ("--model={m}/quantized.keras", "Weights must be floats, which --quantize turns into"),
    "an output for each pixel": ("--model={m}/segmentation.keras", "y must hold a map of class indices"),
    "weights for a file": ("--weights=random", "--weights belongs to a zoo name"),
    "unknown weights": ("--model=resnet20 --weights=none.h5", "Received: none.h5"),
    "a size that is fixed": ("--image_size=9", "only for models that leave height and width open"),
}
DATA = {
    "no data": ("--data=", "--data must have a value, or be left out. Received: --data="),
    "missing path": ("--data={d}/none", "Received: {d}/none"),
    "another suffix": ("--data={d}/names.txt", "Received: {d}/names.txt"),
    "an empty folder": ("--data={d}/empty", "the empty folder {d}/empty"),
    "a folder without images": ("--data={d}/texts", "{d}/texts, without any"),
    "a truncated image": ("--data={d}/truncated", "Received: {d}/truncated/b/5.png"),
    "one class, folder": ("--data={d}/one_class", "Received: 1 sub-folders in {d}/one_class"),
    "one class, archive": ("--data={d}/one_class.npz", "at least two classes. Received: only class 0"),
    "size": ("--data={d}/size.npz", "height 8, width 8 and 3 channels"),
    "channels": ("--data={d}/channels.npz", "Received: shape (24, 8, 8, 1) in {d}/channels.npz"),
    "labels too large": (
        "--data={d}/labels.npz",
        "must be in 0..3, the model's classes. Received: smallest 1, largest 4",
    ),
    "labels below zero": ("--data={d}/negative.npz", "Received: smallest -1, largest 2"),
    "NaN": ("--data={d}/nan.npz", "Received: NaN or infinity in x["),
    "no images": ("--data={d}/no_images.npz", "at least one image. Received: shape (0, 8, 8, 3)"),
    "text in an archive": ("--data={d}/text.npz", "Received: {d}/text.npz"),
    "TFDS that is no name": ("--data=tfds:", "Received: tfds:"),
    "class names that do not fit": ("--data={d}/photos --class_names={d}/names.txt", "Received: 3 lines in"),
    "class names that are missing": ("--class_names={d}/none.txt", "Received: {d}/none.txt"),
    "the same images again": ("--eval_data={i}/data.npz", "Received: first shared image x["),
    "bad held-out data": ("--eval_data={d}/labels.npz", "must be in 0..3"),
    "no calibration images": ("--calibration_samples=0", "--calibration_samples must be at least 1. Received: 0"),
    "batches of one": ("--model={m}/dense_norm.keras --target=storage --batch_size=1", "batches of one"),
    "one calibration image": (
        "--model={m}/dense_norm.keras --target=storage --calibration_samples=1",
        "batches of one",
    ),
    "unknown scaling": (
        "--preprocess=imagenet",
        "--preprocess must be auto, tf, torch, caffe, lite, unit, none, or means and stds such as ",
    ),
}
PRUNING = {
    "everything": ("--sparsity=1", "[0, 1). Received: 1.0"),
    "less than nothing": ("--sparsity=-0.1", "[0, 1). Received: -0.1"),
    "no number": ("--sparsity=nan", "[0, 1). Received: nan"),
    "percent": ("--sparsity=70%", "--sparsity must be a number, auto or existing. Received: 70%"),
    "an expression that matches nothing": (
        "--prunable=nothing_like_it",
        "--prunable=nothing_like_it does not match its path",
    ),
    "no expression": ("--prunable=conv(", "Received: conv( (missing ), unterminated subpattern at position 4)"),
    "N:M that does not divide": (
        "--model={m}/six_channels.keras --pattern=nm:2,4",
        "Received: 6 input channels at conv_1/kernel",
    ),
    "N over M": ("--pattern=nm:4,2", "0 < N < M"),
    "N:M with a sparsity": ("--pattern=nm:2,4 --sparsity=0.7", "leave --sparsity out. Received: --sparsity=0.7"),
    "two budgets": ("--sparsity=0.7 --min_speedup=2", "Received: --sparsity=0.7 --min_speedup=2.0"),
    "a size of nothing": ("--max_size_bytes=0", "--max_size_bytes must be at least 1. Received: 0"),
    "half a byte": ("--max_size_bytes=1e6", "--max_size_bytes must be a whole number, such as 1000. Received: 1e6"),
    "a size that no zeros give": ("--max_size_bytes=99", "the smallest file that these kernels allow. Received: 99"),
    "a speed of the dense file": ("--min_speedup=1", "--min_speedup must be a number over 1. Received: 1.0"),
    "a speed where none is promised": ("--min_speedup=2 --target=storage", "Received: --min_speedup=2"),
    "a speed that no zeros give": ("--min_speedup=1.5", "needs a network that xnnpack can run sparse; nothing of"),
    "an empty block": ("--pattern=block:0x1", "Received: block:0x1"),
    "no pattern": ("--pattern=2:4", "--pattern must be unstructured, nm:N,M"),
    "no allocation": (
        "--allocation=best",
        "--allocation must be one of global, uniform, erk, lamp, auto. Received: best",
    ),
    "no criterion": ("--criterion=luck", "--criterion must be one of magnitude, activation, "),
    "no target": (
        "--target=gpu",
        "--target must be one of xnnpack, cpu, storage, tflm, ethos_u, cortex_m. ",
    ),
    "no repair": ("--repair=glue", "--repair must be one of none, reflow, "),
    "two repairs of which one stands alone": ("--repair=none,reflow", "stands alone. Received: none,reflow"),
    "no quantization": ("--quantize=int4", "--quantize must be one of none, float16, int8. Received: int4"),
    "no seed": ("--seed=-1", "--seed must be from 0 to 4294967295. Received: -1"),
    "a gate below zero": ("--max_accuracy_drop=-1", "from 0 to 100. Received: -1.0"),
    "a batch of nothing": ("--batch_size=0", "--batch_size must be at least 1. Received: 0"),
    "an export batch of nothing": ("--export_batch_size=0", "--export_batch_size must be from 1 to 65536. Received: 0"),
}
FLAGS = {
    "unknown": ("--modle=x", "Unknown command line flag 'modle'. Did you mean: model; see --help. Received: --modle=x"),
    "a position": ("resnet20", "Every argument must be a flag of the form --name=value. Received: resnet20"),
    "no whole number": ("--batch_size=1e3", "--batch_size must be a whole number, such as 1000. Received: 1e3"),
    "no truth value": ("--overwrite=perhaps", "--overwrite must be true or false. Received: perhaps"),
    "a value for a no": ("--nooverwrite=1", "--nooverwrite=1 does not take an argument"),
    "an unset variable": ("--model=", "--model must have a value, or be left out. Received: --model="),
    "no flagfile": ("--flagfile={d}/none", "Unable to open flagfile"),
    "a folder for a flagfile": ("--flagfile={d}", "Unable to open flagfile"),
    "a flagfile that is no text": ("--flagfile={m}/good.keras", "see --help. Received: "),
}
OUTPUT = {
    "a file": ("--output_dir={d}/names.txt", "Received: {d}/names.txt, a file or a link"),
    "below a file": ("--output_dir={d}/names.txt/x", "can be written to (Not a directory). Received: {d}/names.txt/x"),
    "no place to write": (
        "--output_dir=/proc/reflow",
        "can be written to (No such file or directory). Received: /proc",
    ),
    "exists": ("--output_dir={d}/photos", "must not exist yet; --overwrite replaces it. Received: {d}/photos"),
    "overwrite of something else": ("--output_dir={d}/photos --overwrite", "this one also holds a. Received: "),
    "the current folder": ("--output_dir=.", "must not be a mount point or the current folder"),
    "bytes that are no text": ("--output_dir=x\udcff", "--output_dir must be valid UTF-8. Received: 'x\\udcff'"),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in (
        *(("model", MODELS), ("data", DATA), ("pruning", PRUNING)),
        *(("flags", FLAGS), ("output", OUTPUT)),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_one_line_and_harms_nothing(command, inputs, bad_models, bad_data, tmp_path, left, monkeypatch, case):
    flags, expected = case
    places = {"m": bad_models, "d": bad_data, "i": inputs.folder}
    monkeypatch.chdir(tmp_path)
    good = [f"--model={inputs.model}", f"--data={inputs.data}", f"--output_dir={tmp_path / 'x' / 'out'}"]
    given = [flag.format(**places) for flag in flags.split(" ")]
    before = {place: sorted(folder.rglob("*")) for place, folder in places.items()}
    outcome = command(prune, *good, *given)
    assert outcome.code == 2 and not outcome.out
    assert expected.format(**places) in outcome.error and "Received: " in outcome.error
    assert left() == {}
    assert {place: sorted(folder.rglob("*")) for place, folder in places.items()} == before


def test_no_model(command):
    assert "--model is needed" in command(prune).error


def test_a_file_without_images_of_its_own(command, inputs, tmp_path):
    assert "--data is needed" in command(prune, model=inputs.model, output_dir=tmp_path / "out").error


def test_line_breaks_and_colours_in_names_stay_in_the_line(command, inputs, tmp_path):
    flags = {"model": inputs.model, "data": "x\ny\x1b[31m", "output_dir": tmp_path / "out"}
    assert command(prune, **flags).error.endswith("Received: x\\ny\\x1b[31m")


@pytest.mark.parametrize("name", ["model", "weights", "data", "eval_data", "class_names"])
def test_overwrite_does_not_take_away_what_it_reads(command, inputs, tmp_path, left, name):
    out = tmp_path / "out"
    out.mkdir()
    for file in ("model.keras", "model.tflite", "plan.json", "config.json", "masks.npz", "report.json", "report.html"):
        (out / file).write_bytes(pathlib.Path(inputs.model).read_bytes())
    before = left()
    flags = {"model": inputs.model, "data": inputs.data, "output_dir": out, "overwrite": True}
    outcome = command(prune, **flags | {name: out / "model.keras"})
    assert outcome.code == 2 and left() == before
    assert f"--{name} must not be inside --output_dir" in outcome.error
