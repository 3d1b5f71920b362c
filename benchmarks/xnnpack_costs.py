"""Fits what targets/xnnpack/costs.py says an operator costs, dense and in a sparse cluster, to small networks.

    python -m reflow_tf.tools.setup_runtime --runtime=aarch64
    python benchmarks/xnnpack_costs.py --device=arm --networks=70 --folder=/tmp/costs
    python benchmarks/xnnpack_costs.py --device=browser --networks=70 --folder=/tmp/costs

Each network is drawn by its number: a stem, layers as mobile networks have them on maps of many sizes, an all-zero
squeeze-and-excitation block so that it runs sparse at any share of zeros, and a mean. Its file is measured with its
weights stored dense and stored sparse. Printed are the coefficients, and predicted beside measured. An idle machine is
needed for --device=browser; --device=arm counts instructions and does not mind. What was measured stays in the folder,
and is not measured again.
"""

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.latency import measure_interleaved
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web
from reflow_tf.targets.xnnpack.costs import DEVICES, Device, count_work
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.versions import NEWEST

FLAGS = flags.FLAGS
flags.DEFINE_enum("device", "arm", list(DEVICES), "Whose coefficients.")
flags.DEFINE_integer("networks", 70, "How many networks are drawn.")
flags.DEFINE_string("folder", None, "Where files and measurements are kept.", required=True)
flags.DEFINE_integer("rounds", 40, "Of each browser measurement.")
flags.DEFINE_integer("together", 7, "Networks measured turn by turn in one browser.")

_SWEEPS = 20_000
_WARM_UP, _QUICK = 15, 0.15


class Drawn:
    """A network drawn by a number."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self._rows = int(self._rng.choice([1, 1, 2, 4]))
        self._num_weights = 0  # of 1x1 convolutions so far

    def model(self) -> keras.Model:
        """A model with random weights and zeros in its 1x1 kernels."""
        rng = self._rng
        size = int(rng.choice([32, 56, 64, 96, 112, 128, 160, 192]))
        image = keras.Input((size, size, 3))
        x = self._window(image, int(rng.choice([8, 16, 24, 32])))
        for _ in range(rng.integers(3, 8)):
            x = self._layer(x)
        share = float(rng.choice([0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]))
        model = keras.Model(image, self._end(x))
        self._write(model, share)
        return model

    def _window(self, x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
        x = keras.layers.ZeroPadding2D(1)(x)
        return keras.layers.ReLU(6.0)(keras.layers.Conv2D(filters, 3, strides=2)(x))

    def _layer(self, x: keras.KerasTensor) -> keras.KerasTensor:
        rng, (_, size, _, channels) = self._rng, x.shape
        wide = min(int(rng.choice([16, 24, 40, 64, 96, 150, 256, 480, 960])), max(16, 400_000 // size**2))
        match rng.choice(["point", "point", "point", "depth", "depth", "shrink", "shrink", "add", "act", "excite"]):
            case "point":
                return self._point(x, wide, str(rng.choice(["linear", "relu6"])))
            case "depth" | "shrink" as kind:
                kernel, stride = int(rng.choice([3, 3, 5])), 2 if kind == "shrink" and size > 5 else 1
                x = keras.layers.ZeroPadding2D(kernel // 2)(x) if stride == 2 else x
                padding = "valid" if stride == 2 else "same"
                return keras.layers.DepthwiseConv2D(kernel, stride, padding, bias_initializer="normal")(x)
            case "add":
                return keras.layers.Add()([x, self._point(x, channels)])
            case "act":
                x = self._point(x, wide)
                kind = str(rng.choice(["relu", "hard_silu", "sigmoid", "silu"]))
                return keras.layers.Activation(kind)(x)
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = self._point(gate, max(8, channels // 4), "relu")
        return keras.layers.Multiply()([x, keras.layers.Activation("sigmoid")(self._point(gate, channels))])

    def _point(self, x: keras.KerasTensor, filters: int, activation: str = "linear") -> keras.KerasTensor:
        self._num_weights += x.shape[-1] * filters
        return keras.layers.Conv2D(filters, 1, activation=activation, bias_initializer="normal")(x)

    def _end(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """A factor of exactly 1, of zeros and a bias, that brings the zeros of the cluster over two thirds."""
        channels = x.shape[-1]
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        hidden = (2 * self._num_weights + 1000) // (2 * channels) + 8
        gate = keras.layers.Conv2D(hidden, 1, name="ballast_1")(gate)
        gate = keras.layers.Conv2D(channels, 1, name="ballast_2", bias_initializer="ones")(gate)
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Multiply()([x, gate]))

    def _write(self, model: keras.Model, share: float) -> None:
        for layer in model.layers:
            if not isinstance(layer, keras.layers.Conv2D) or layer.kernel_size != (1, 1):
                continue
            kernel = np.array(layer.get_weights()[0])
            kernel[...] = 0 if layer.name.startswith("ballast") else self._sparse(kernel, share)
            layer.kernel.assign(kernel)

    def _sparse(self, kernel: np.ndarray, share: float) -> np.ndarray:
        """Zeros in blocks of output channels, which are the last axis."""
        inputs, outputs = kernel.shape[2:]
        own = float(np.clip(share + self._rng.uniform(-0.1, 0.1), 0, 0.98)) if share else 0.0
        kept = self._rng.random((inputs, -(-outputs // self._rows))) >= own
        return kernel * np.repeat(kept, self._rows, axis=1)[:, :outputs]


def make_files(folder: pathlib.Path, number: int) -> tuple[pathlib.Path, pathlib.Path]:
    """The files of one network, stored dense and stored sparse; made once."""
    paths = folder / f"{number}_dense.tflite", folder / f"{number}_sparse.tflite"
    if not all(path.exists() for path in paths):
        keras.utils.set_random_seed(number)
        keras.backend.clear_session()
        file = export_tflite(Drawn(number).model(), rewrite="exact", ballast="off")
        for path, content in zip(paths, (file.dense_content, file.content), strict=True):
            path.write_bytes(content)
    return paths


def measure(paths: list[pathlib.Path], device: str, store: pathlib.Path) -> dict[str, float]:
    """File name -> cost; in a browser by that of the first file of each group, which is the same in all."""
    known: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}
    missing = [path for path in paths if path.name not in known]
    size = 1 if device == "arm" else 2 * FLAGS.together
    for start in range(0, len(missing), size):
        group = missing[start : start + size]
        known |= _measure_group(group, device, paths[0])
        store.write_text(json.dumps(known))
        print(f"{start + len(group)} of {len(missing)}", flush=True)
    return known


def _measure_group(group: list[pathlib.Path], device: str, anchor: pathlib.Path) -> dict[str, float]:
    """Instructions; or times by that of the anchor, each the quick end of many: what else ran only ever adds to one."""
    if device == "arm":
        return {path.name: AArch64(path.read_bytes()).measure() for path in group}
    with Browser(1) as browser:
        runtimes = [Web(path.read_bytes(), browser) for path in (anchor, *group)]
        first, *others = np.quantile(measure_interleaved(runtimes, FLAGS.rounds, _WARM_UP), _QUICK, axis=1)
    return {path.name: float(cost / first) for path, cost in zip(group, others, strict=True)}


def tabulate(paths: list[pathlib.Path], device: Device) -> list[dict[str, float]]:
    """The work of each file."""
    rows = []
    for path in paths:
        graph = read_operators(path.read_bytes())
        rows.append(dict(count_work(graph, judge_version(graph, NEWEST).switched, device.tiles)))
    return rows


def fit(rows: list[dict[str, float]], costs: np.ndarray) -> dict[str, float]:
    """Nonnegative least squares of relative errors, one coordinate after the other."""
    kinds = sorted({kind for row in rows for kind in row})
    matrix = np.array([[row.get(kind, 0.0) for kind in kinds] for row in rows]) / costs[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    matrix /= scale
    gram, wanted, solution = matrix.T @ matrix, matrix.sum(axis=0), np.zeros(len(kinds))
    for _ in range(_SWEEPS):
        for kind in range(len(kinds)):
            solution[kind] = max(0.0, solution[kind] + wanted[kind] - gram[kind] @ solution)
    return dict(zip(kinds, (solution / scale).tolist(), strict=True))


def main(_: list[str]) -> None:
    folder = pathlib.Path(FLAGS.folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for number in range(FLAGS.networks) for path in make_files(folder, number)]
    device = DEVICES[FLAGS.device]
    known = measure(paths, device.name, folder / f"{device.name}.json")
    rows, costs = tabulate(paths, device), np.array([known[path.name] for path in paths])
    coefficients = fit(rows, costs)
    for kind, value in coefficients.items():
        print(f'    "{kind}": {value:.4g},')
    made = Device(device.name, "", "", device.tiles, coefficients)
    ratios = np.array([made.cost(row) for row in rows]) / costs
    for path, cost, ratio in zip(paths, costs, ratios, strict=True):
        print(f"| {path.stem} | {cost:.4g} | {ratio:.3f} |")
    gains = ratios[::2] / ratios[1::2]
    for name, values in (("cost", ratios), ("speed-up", gains)):
        low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
        print(f"{name}: predicted / measured {median:.3f}, 90 % from {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    app.run(main)
