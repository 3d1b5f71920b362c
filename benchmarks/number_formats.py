"""What one network costs wherever it runs: dense, sparse, narrower, narrower and sparse, in every number format.

    python -m reflow_tf.tools.setup_runtime --runtime=aarch64
    python -m reflow_tf.tools.setup_runtime --runtime=web
    python benchmarks/number_formats.py --weights=mobilenet_v2.safetensors --data=photos/
    python benchmarks/number_formats.py --model=resnet8 --where=cortex-a76,browser,tflm,cortex-m4

Nothing is repaired, and no accuracy is told: costs depend on which weights and channels are there, not on their
values. Of ARM CPUs instructions of one inference are counted, and cycles estimated (docs/frontier.md): across number
formats instructions are no measure of time. Of a browser the time is measured, all files in turns. Of `tflm` bytes of
flash and of the arena, with zeros as bitmaps; of a Cortex-M instructions, flash and RAM of the generated C, which
leaves zeros out. Sparse kernels of phones and browsers compute in float32, microcontrollers in int8.
"""

import contextlib
import functools
import io
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from calibration import export_int8, open_images

from reflow_tf.choices import BOARDS
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.tflite import ExportedFile, export_tflite
from reflow_tf.jobs.benchmark import Candidate, measure_files
from reflow_tf.jobs.microcontroller import Files, measure_cortex_m, measure_tflm
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.runtimes.aarch64 import cpus
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.sparsity.patterns import Channel

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("image_size", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("data", None, "As in reflow_tf.tools.prune. Default: embedded images; else noise.")
flags.DEFINE_integer("calibration_samples", 128, "Of it: they say which channels leave.")
flags.DEFINE_list("sparsities", ["0.7"], "Of what the device rewards, the same in every layer.")
flags.DEFINE_list("max_macs", ["0.75"], "Shares of the multiply-adds.")
flags.DEFINE_list("where", list(cpus.CPUS), f"Of {', '.join(cpus.CPUS)}, browser, tflm, cortex-m4 and other boards.")

MCU = "tflm"
MOST_COMPARED = 16
"""Inputs on which a microcontroller's outputs are compared, bit for bit."""


class Form(NamedTuple):
    """A network in one form, for phones and browsers, or for microcontrollers."""

    name: str
    model: keras.Model
    is_sparse: bool


def describe_forms() -> dict[str, dict[str, Any]]:
    """Name -> what `PruneConfig` takes."""
    zeros = {f"{float(share):.0%} zeros": {"sparsity": float(share)} for share in FLAGS.sparsities}
    narrow = {f"narrower, {float(share):.0%}": {"max_macs": float(share)} for share in FLAGS.max_macs}
    both = {f"{a}, {b}": narrow[a] | zeros[b] for a in narrow for b in zeros}
    return {"dense": {}, **zeros, **narrow, **both}


def make_forms(model: keras.Model, target: str, calibration: Sequence[np.ndarray]) -> list[Form]:
    forms = []
    for name, given in describe_forms().items():
        settings = given | ({"allocation": "uniform"} if "sparsity" in given else {"pattern": Channel()})
        config = PruneConfig(**settings, target=target, repair="none")
        try:
            made = prune(model, config, calibration).model if given else model
        except InputError as error:  # a network of which the target rewards no zeros
            print(f"{target}, {name}: not made. {error}", flush=True)
        else:
            forms.append(Form(name, made, "sparsity" in given))
    return forms


def convert_dynamic_range(model: keras.Model) -> bytes:
    """TensorFlow's own conversion with int8 weights and float activations, which needs no images."""
    image = keras.Input(model.input_shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, model(image)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with contextlib.redirect_stdout(io.StringIO()):  # it lists every variable
        return bytes(converter.convert())


def make_files(forms: Sequence[Form], calibration: Sequence[np.ndarray]) -> list[Candidate]:
    """For phones and browsers, in every number format that each form exists in; floats at their ends, as apps have."""
    files = []
    for form in forms:
        if form.is_sparse:
            exported = export_tflite(form.model, rewrite="exact")
            files.append(Candidate(f"float32, {form.name}", exported.content))
            continue
        for quantize in ("none", "float16", "int8"):
            label = f"{'float32' if quantize == 'none' else quantize}, {form.name}"
            exported = export_tflite(
                form.model, quantize=quantize, io="float", calibration=calibration, storage="dense"
            )
            files.append(Candidate(label, exported.content))
        if form.name == "dense":
            files.append(Candidate("dynamic range, dense", convert_dynamic_range(form.model)))
    return files


def count_on(cpu: str, files: Sequence[Candidate]) -> list[str]:
    """Millions of instructions, and of cycles by estimate; the outputs are compared with LiteRT's first."""
    cells = []
    for file in files:
        (found,) = measure_files([file], runtime="aarch64", cpu=cpu).files
        if found.differs:
            raise RuntimeError(f"{file.label} must give LiteRT's outputs on {cpu}. Received: {found.difference}")
        cycles = AArch64(file.content, cpu=cpu).estimate().cycles
        cells.append(f"{found.cost.median / 1e6:.1f} / {cycles / 1e6:.1f}")
        print(f"{cpu}, {file.label}: {cells[-1]}", flush=True)  # a minute and a half each
    return cells


def time_in_browser(files: Sequence[Candidate]) -> list[str]:
    """Milliseconds, and how many times as fast as the first file, round by round."""
    found = measure_files(files[1:], files[0], runtime="web").all_files
    if wrong := [file.label for file in found if file.differs]:
        raise RuntimeError(f"Files must give LiteRT's outputs in the browser. Received: other ones of {wrong}")
    return [f"{file.cost.median:.2f}" + (f" ({file.speedup.median:.2f}x)" if file.speedup else "") for file in found]


def export_forms(forms: Sequence[Form], storage: str, calibration: Sequence[np.ndarray]) -> list[ExportedFile]:
    """In int8, the first of them, the dense network, stored dense."""
    dense, *others = forms
    stored = [export_int8(form.model, calibration, storage) for form in others]
    return [export_int8(dense.model, calibration), *stored]


def weigh_in_tflm(forms: Sequence[Form], calibration: Sequence[np.ndarray]) -> list[str]:
    """Bytes of the file and of the arena."""
    files = export_forms(forms, "bitmap", calibration)
    cells = []
    for file in files:
        found = measure_tflm(Files(file, files[0], calibration[0][:MOST_COMPARED]))
        cells.append(f"{found.flash_bytes:,} / {found.arena_bytes:,}" + _say_equal(found.num_equal, found.num_compared))
    return cells


def count_on_board(board: str, forms: Sequence[Form], calibration: Sequence[np.ndarray]) -> list[str]:
    """Millions of instructions of the generated C, its bytes of flash and of RAM."""
    files = export_forms(forms, "dense", calibration)
    cells = []
    for file in files:
        found = measure_cortex_m(Files(file, files[0], calibration[0][:MOST_COMPARED]), [board])
        counted = f"{found.instructions[board].file / 1e6:.2f} / {found.flash_bytes:,} / {found.arena_bytes:,}"
        cells.append(counted + _say_equal(found.num_equal, found.num_compared))
    return cells


def _say_equal(equal: int, compared: int) -> str:
    return "" if equal == compared else f" ({equal} of {compared} outputs equal)"


def print_table(heads: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    print(f"\n| file | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for head, *cells in zip(heads, *columns.values(), strict=True):
        print(f"| {head} | {' | '.join(cells)} |", flush=True)


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    loaded = load_model(FLAGS.model, weights=FLAGS.weights, image_size=FLAGS.image_size)
    number = FLAGS.calibration_samples
    calibration = list(open_images(loaded, FLAGS.data, calibration_samples=number, num_noise=number)[0])
    measures: dict[str, Callable[[Sequence[Candidate]], list[str]]] = {"browser": time_in_browser}
    measures |= {cpu: functools.partial(count_on, cpu) for cpu in cpus.CPUS}
    if wanted := [place for place in FLAGS.where if place in measures]:
        files = make_files(make_forms(loaded.model, "xnnpack", calibration), calibration)
        columns = {"bytes": [f"{len(file.content):,}" for file in files]}
        columns |= {place: measures[place](files) for place in wanted}
        print_table([file.label for file in files], columns)
    boards = {f"cortex-{board}": board for board in BOARDS}
    if wanted := [place for place in FLAGS.where if place == MCU or place in boards]:
        forms = make_forms(loaded.model, "cortex_m", calibration)
        columns = {
            place: weigh_in_tflm(forms, calibration)
            if place == MCU
            else count_on_board(boards[place], forms, calibration)
            for place in wanted
        }
        print_table([f"int8, {form.name}" for form in forms], columns)


if __name__ == "__main__":
    app.run(main)
