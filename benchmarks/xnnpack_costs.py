"""Fits what targets/xnnpack/costs.py says an operator costs, dense and in a sparse cluster, to small networks.

    python -m reflow_tf.tools.setup_runtime --runtime=aarch64
    python benchmarks/xnnpack_costs.py --device=arm --networks=70 --folder=/tmp/costs
    python benchmarks/xnnpack_costs.py --device=browser --networks=70 --folder=/tmp/costs

Each network is drawn by its number: a stem, layers as mobile networks have them on maps of many sizes, an all-zero
squeeze-and-excitation block so that it runs sparse at any share of zeros, and a mean. Its file is measured with its
weights stored dense and stored sparse. Printed are the coefficients, and predicted beside measured.

--device=arm counts instructions, which any machine gives alike. Times in a browser are noisy: to those of the drawn
networks come whole networks that were timed on an idle machine, which also say what a millisecond is, and the embedded
network, which is small; and where all say little, the ratios are those on ARM. What was measured stays in the folder,
and is not measured again.

At the end come whole networks that nothing was fitted to, pruned as the tool prunes them and with ballast whether it
pays or not: what would be said of each, and what it came to.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting.ballast import add_ballast
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.latency import measure_interleaved
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web
from reflow_tf.sparsity import patterns
from reflow_tf.targets.xnnpack.costs import DEVICES, Device, count_work
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.speedups import assume_sparsity
from reflow_tf.targets.xnnpack.versions import NEWEST

FLAGS = flags.FLAGS
flags.DEFINE_enum("device", "arm", list(DEVICES), "Whose coefficients.")
flags.DEFINE_integer("networks", 70, "How many networks are drawn.")
flags.DEFINE_string("folder", None, "Where files and measurements are kept.", required=True)
flags.DEFINE_integer("rounds", 100, "Of each browser measurement.")

# Milliseconds in LiteRT.js 2.5.3, one thread, idle machine, by the share of zeros: docs/sparse_xnnpack.md.
PUBLISHED: dict[str, dict[float, float]] = {
    "mobilenet_v2": {0: 17.5, 0.7: 8.5, 0.8: 6.9, 0.9: 5.4},
    "efficientnet_lite0": {0: 25.7, 0.7: 12.4, 0.8: 10.3, 0.9: 8.2},
    "MobileNet": {0: 28.7, 0.8: 11.2},
    "MobileNetV3Large": {0: 15.1, 0.8: 7.0},
    "EfficientNetB0": {0: 33.2, 0.8: 18.0},
}
ZOO = ("mobilenet_v2", "efficientnet_lite0")
APPLICATIONS: dict[str, Callable[[], keras.Model]] = {
    "MobileNet": lambda: keras.applications.MobileNet(weights=None),
    "MobileNetV3Large": lambda: keras.applications.MobileNetV3Large(
        (224, 224, 3), weights=None, include_preprocessing=False
    ),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(weights=None),
}
# Of each whole network: how its zeros are shared out, how many, and in which pattern.
PRUNED = (
    *(("uniform", share, "unstructured") for share in (0.4, 0.5, 0.6, 0.7, 0.8)),
    ("global", 0.6, "unstructured"),
    ("uniform", 0.5, "block:2x1"),
)
SMALL = "embedded"
# Where a browser's kernels take other tiles than those on ARM; for 2 and 4 rows they are scalar, and take 8 pixels.
PRIOR_FACTORS = {
    **dict.fromkeys(("product", "product_tile", "window", "depthwise3s1", "depthwise3s1_band"), 2 / 3),
    **dict.fromkeys(("depthwise3s2", "depthwise3s2_band"), 1 / 2),
    **dict.fromkeys(("depthwise5s1", "depthwise5s1_band"), 3 / 4),
    **{f"sparse{rows}_{part}": 1 / 4 for rows in (2, 4) for part in ("pass", "vector")},
    **{f"sparse{rows}_row_whole": 1 / 2 for rows in (2, 4)},
}

_WARM_UP, _QUICK, _TOGETHER = 15, 0.05, 14
# Instructions, by the costs on ARM: what takes longer is hardly ever timed without an interruption.
_LIGHT = 25e6
_ROUNDS_OF_FIT, _SWEEPS = 20, 3000
_TOLERANCE, _IDLE_WEIGHT, _PRIOR_WEIGHT = 0.06, 2.0, 0.1

ARM = DEVICES["arm"]
Pair = tuple[pathlib.Path, pathlib.Path]


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


def make_files(folder: pathlib.Path, number: int) -> Pair:
    """The files of one network, stored dense and stored sparse; made once."""
    paths = folder / f"{number}_dense.tflite", folder / f"{number}_sparse.tflite"
    if not all(path.exists() for path in paths):
        keras.utils.set_random_seed(number)
        keras.backend.clear_session()
        file = export_tflite(Drawn(number).model(), rewrite="exact", ballast="off")
        for path, content in zip(paths, (file.dense_content, file.content), strict=True):
            path.write_bytes(content)
    return paths


def measure(pairs: list[Pair], device: str, store: pathlib.Path) -> dict[str, tuple[int, float]]:
    """File name -> number of the group that it was measured in, and cost; stored after each group."""
    known: dict[str, tuple[int, float]] = json.loads(store.read_text()) if store.exists() else {}
    missing = [path for pair in pairs for path in pair if path.name not in known]
    first = 1 + max((group for group, _ in known.values()), default=-1)
    for number, start in enumerate(range(0, len(missing), _TOGETHER)):
        group = missing[start : start + _TOGETHER]
        costs = _count(group) if device == "arm" else _time(group)
        known |= {path.name: (first + number, cost) for path, cost in zip(group, costs, strict=True)}
        store.write_text(json.dumps(known))
        print(f"{start + len(group)} of {len(missing)}", flush=True)
    return known


def _count(group: list[pathlib.Path]) -> list[float]:
    return [AArch64(path.read_bytes()).measure() for path in group]


def _time(group: list[pathlib.Path]) -> list[float]:
    """The quick end of many times: whatever else ran only ever adds to them."""
    with Browser(1) as browser:
        runtimes = [Web(path.read_bytes(), browser) for path in group]
        return np.quantile(measure_interleaved(runtimes, FLAGS.rounds, _WARM_UP), _QUICK, axis=1).tolist()


@dataclasses.dataclass(frozen=True)
class Equation:
    """What a file cost.

    Attributes:
        work: of one inference.
        group: what was measured together, on a machine that was as quick or slow for all of it; None: on an idle one.
    """

    label: str
    work: dict[str, float]
    cost: float
    group: int | None


def collect_drawn(device: Device, folder: pathlib.Path) -> list[Equation]:
    """The drawn networks; instructions are the same on every machine."""
    pairs = [make_files(folder, number) for number in range(FLAGS.networks)]
    if device.name == "browser":
        pairs = [pair for pair in pairs if max(ARM.cost(_count_work(path, ARM)) for path in pair) < _LIGHT]
    known = measure(pairs, device.name, folder / f"{device.name}.json")
    found = []
    for path in (path for pair in pairs for path in pair):
        group, cost = known[path.name]
        found.append(Equation(path.stem, _count_work(path, device), cost, None if device is ARM else group))
    return found


def _count_work(path: pathlib.Path, device: Device) -> dict[str, float]:
    graph = read_operators(path.read_bytes())
    return dict(count_work(graph, judge_version(graph, NEWEST).switched, device.tiles))


def collect_published(device: Device, folder: pathlib.Path) -> list[Equation]:
    """Whole networks of docs/sparse_xnnpack.md, every 1x1 layer equally sparse."""
    found = []
    for name, times in PUBLISHED.items():
        path = folder / f"{name}.tflite"
        if not path.exists():
            model = load_model(name, weights="random", image_size=224).model if name in ZOO else APPLICATIONS[name]()
            path.write_bytes(export_tflite(model, rewrite="exact", storage="dense").content)
        dense = read_operators(path.read_bytes())
        judgement = judge_version(dense, NEWEST)
        for sparsity, milliseconds in times.items():
            graph = assume_sparsity(dense, judgement.possible, sparsity)
            work = count_work(graph, judgement.possible_switches if sparsity else (), device.tiles)
            found.append(Equation(f"{name} {sparsity:.0%}", dict(work), milliseconds, None))
    return found


def make_whole(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """The dense file of a network, then its pruned ones; made once."""
    labels = [f"{allocation}_{share:.0%}_{pattern.replace(':', '_')}" for allocation, share, pattern in PRUNED]
    paths = [folder / f"whole_{name}_{label}.tflite" for label in ("dense", *labels)]
    if not all(path.exists() for path in paths):
        keras.utils.set_random_seed(0)
        model = _build(name)
        contents = [export_tflite(model, storage="dense").content]
        for allocation, share, pattern in PRUNED:
            config = PruneConfig(
                sparsity=share, allocation=allocation, pattern=patterns.parse(pattern), repair="none", prunable="target"
            )
            dense = export_tflite(prune(model, config).model, storage="dense", rewrite="exact").content
            contents.append(store_sparse(add_ballast(dense, ()).content))
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
    return paths


def _build(name: str) -> keras.Model:
    if name == SMALL:
        return load_model("mobilenet_v2").model
    return load_model(name, weights="random", image_size=224).model if name in ZOO else APPLICATIONS[name]()


def measure_whole(name: str, device: Device, folder: pathlib.Path) -> list[Equation]:
    """A whole network, dense first; in a browser all its files round by round."""
    paths = make_whole(name, folder)
    store = folder / f"whole_{name}_{device.name}.json"
    if not store.exists():
        costs = _count(paths) if device is ARM else _time(paths)
        store.write_text(json.dumps(costs))
    group = None if device is ARM else sum(map(ord, name))  # a number of its own, beyond those of the drawn networks
    return [
        Equation(path.stem.removeprefix("whole_"), _count_work(path, device), cost, group)
        for path, cost in zip(paths, json.loads(store.read_text()), strict=True)
    ]


def report_whole(device: Device, coefficients: dict[str, float], folder: pathlib.Path) -> None:
    """Prints what the costs say of networks that they were not fitted to, beside what was measured."""
    fitted = dataclasses.replace(device, coefficients=coefficients)
    print("| file | speed-up predicted | measured | predicted / measured |\n|---|---|---|---|")
    for name in (*ZOO, *APPLICATIONS):
        dense, *others = measure_whole(name, device, folder)
        for each in others:
            predicted, measured = fitted.cost(dense.work) / fitted.cost(each.work), dense.cost / each.cost
            print(f"| {each.label} | {predicted:.2f} | {measured:.2f} | {predicted / measured:.3f} |", flush=True)


class Fit:
    """Nonnegative least squares of relative errors, outliers weighing less, each group's machine as quick as it was.

    Args:
        equations: what was measured.
        prior: kind of work -> cost in another unit; where measurements say little, the coefficients keep its ratios.
    """

    def __init__(self, equations: list[Equation], prior: dict[str, float]):
        self._kinds = sorted({kind for equation in equations for kind in equation.work})
        self._work = np.array([[each.work.get(kind, 0.0) for kind in self._kinds] for each in equations])
        self._costs = np.array([each.cost for each in equations])
        self._groups = [each.group for each in equations]
        self._prior = np.array([prior.get(kind, 0.0) for kind in self._kinds])
        self.scales = np.ones(len(equations))
        weights = np.ones(len(equations))
        for _ in range(_ROUNDS_OF_FIT):
            self.solution = self._solve(weights)
            ratios = self.ratios
            for group in {group for group in self._groups if group is not None}:
                own = [each == group for each in self._groups]
                self.scales[own] *= np.median(ratios[own])
            errors = np.abs(np.log(np.maximum(self.ratios, 1e-3)))
            weights = np.sqrt(_TOLERANCE / np.maximum(errors, _TOLERANCE))

    @property
    def ratios(self) -> np.ndarray:
        """Predicted by measured, equation by equation."""
        return self._work @ self.solution / (self._costs * self.scales)

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(zip(self._kinds, self.solution.tolist(), strict=True))

    def _solve(self, weights: np.ndarray) -> np.ndarray:
        """One coordinate after the other."""
        idle = np.array([group is None for group in self._groups])
        if not idle.all():
            weights = weights * np.where(idle, _IDLE_WEIGHT, 1.0)
        matrix = self._work / (self._costs * self.scales)[:, None]
        rows, right = [matrix * weights[:, None]], [weights]
        if self._prior.any():
            unit = np.median(1 / (matrix @ self._prior)[idle])
            known = self._prior > 0
            rows.append(np.diag(_PRIOR_WEIGHT / np.where(known, self._prior * unit, np.inf)))
            right.append(_PRIOR_WEIGHT * known)
        matrix, wanted = np.vstack(rows), np.concatenate(right)
        norms = np.linalg.norm(matrix, axis=0)
        norms[norms == 0] = 1
        gram, pull, found = (matrix / norms).T @ (matrix / norms), (matrix / norms).T @ wanted, np.zeros(len(norms))
        for _ in range(_SWEEPS):
            for kind in range(len(found)):
                found[kind] = max(0.0, found[kind] + pull[kind] - gram[kind] @ found)
        return found / norms


def main(_: list[str]) -> None:
    folder = pathlib.Path(FLAGS.folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = DEVICES[FLAGS.device]
    equations = collect_drawn(device, folder)
    prior = {}
    if device.name == "browser":
        equations += collect_published(device, folder) + measure_whole(SMALL, device, folder)
        prior = _expect_from_arm()
    fit = Fit(equations, prior)
    for kind, value in fit.coefficients.items():
        if value > 0:
            print(f'    "{kind}": {value:.4g},')
    print("| file | measured | predicted / measured |\n|---|---|---|")
    for equation, ratio in zip(equations, fit.ratios, strict=True):
        print(f"| {equation.label} | {equation.cost:.4g} | {ratio:.3f} |")
    for name, values in (("cost", fit.ratios), ("speed-up of drawn networks", _gains(equations, fit.ratios))):
        low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
        print(f"{name}: predicted / measured {median:.3f}, 90 % from {low:.3f} to {high:.3f}")
    report_whole(device, fit.coefficients, folder)


def _expect_from_arm() -> dict[str, float]:
    """Kind of work -> cost, in ARM's instructions, with what ARM's fit leaves out as a share of what it has."""
    found = dict(ARM.coefficients)
    for rows in (1, 2, 4):
        for part, share in (("pass", 0.25), ("vector", 0.1)):
            found.setdefault(f"sparse{rows}_row_{part}", share * found[f"sparse{rows}_row_whole"])
    return {kind: cost * PRIOR_FACTORS.get(kind, 1.0) for kind, cost in found.items()}


def _gains(equations: list[Equation], ratios: np.ndarray) -> np.ndarray:
    """Predicted speed-up by measured one, of each drawn network."""
    drawn = [ratio for equation, ratio in zip(equations, ratios, strict=True) if equation.label[0].isdigit()]
    return np.array(drawn[::2]) / np.array(drawn[1::2])


if __name__ == "__main__":
    app.run(main)
