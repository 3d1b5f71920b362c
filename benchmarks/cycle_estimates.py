"""How far the estimate of cycles is off: its ratios of number formats beside published times of the same networks.

    python -m reflow_tf.tools.setup_runtime --runtime=aarch64
    apt-get install -y --no-install-recommends llvm-19
    python benchmarks/cycle_estimates.py --output=cycles.jsonl

Weights are random: they change neither instructions nor cycles. Each estimate is written as it comes, and a later run
goes on. A ratio is a number format's time by float32's, on the same core and by the same software; the published ones
are not all LiteRT's, nor of one thread, and say so.
"""

import dataclasses
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.choices import FORMATS
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.loading import load_model
from reflow_tf.runtimes.aarch64 import cpus
from reflow_tf.runtimes.aarch64.runtime import AArch64

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "cycles.jsonl", "What is estimated so far.")
flags.DEFINE_list("networks", ["v1", "v2", "v3-large", "v3-small", "lite0"], "Of those that times were published for.")
flags.DEFINE_list("cpus", list(cpus.CPUS), "Of those that are emulated.")


@dataclasses.dataclass(frozen=True)
class Published:
    """Milliseconds of one inference that somebody else measured.

    Attributes:
        software: that ran it.
        threads: of the CPU.
        board: the CPU's, as the table names it.
        times: by network and number format.
    """

    software: str
    threads: int
    board: str
    cpu: str
    times: dict[str, dict[str, float]]


def _times(float32: list[float], int8: list[float], float16: list[float] | None = None) -> dict[str, dict[str, float]]:
    networks = ("v1", "v2", "v3-large", "v3-small")
    found = {}
    for index, network in enumerate(networks[: len(float32)]):
        found[network] = {"float32": float32[index], "int8": int8[index]}
        if float16:
            found[network]["float16"] = float16[index]
    return found


# Paddle-Lite 2.11, docs/performance/benchmark.md, ARMv8, bound to the big core. XNNPACK, README.md at 75db3c093, of
# February 2022. EfficientNet-Lite: github.com/tensorflow/tpu, models/official/efficientnet/lite.
PADDLE, XNNPACK, TFLITE = ("Paddle-Lite", 1), ("XNNPACK", 4), ("TFLite of 2020", 4)
PUBLISHED = (
    Published(
        *(*PADDLE, "Snapdragon 855", "cortex-a76"),
        _times([29.04, 19.37, 15.59, 5.39], [11.86, 11.38, 8.88, 3.29], [15.79, 10.29, 8.43, 2.90]),
    ),
    Published(
        *(*PADDLE, "RK3399", "cortex-a72"),
        _times([103.39, 73.37, 63.34, 21.67], [77.60, 56.66, 46.66, 15.83]),
    ),
    Published(
        *(*PADDLE, "Snapdragon 625", "cortex-a53"),
        _times([143.64, 106.17, 96.11, 39.08], [117.41, 83.47, 66.76, 22.83]),
    ),
    Published(*XNNPACK, "Raspberry Pi 4", "cortex-a72", _times([77, 46], [24, 17])),
    Published(*XNNPACK, "Raspberry Pi 3+, 32 bits", "cortex-a53", _times([114, 79], [46, 30])),
    Published(*TFLITE, "Pixel 4", "cortex-a76", {"lite0": {"float32": 12, "int8": 6.5}}),
)


def build(network: str) -> keras.Model:
    """The network with random weights."""
    made = keras.applications
    shape = {"input_shape": (224, 224, 3), "weights": None}
    return {
        "v1": lambda: made.MobileNet(**shape),
        "v2": lambda: load_model("mobilenet_v2", weights="random", image_size=224).model,
        "v3-large": lambda: made.MobileNetV3Large(**shape, include_preprocessing=False),
        "v3-small": lambda: made.MobileNetV3Small(**shape, include_preprocessing=False),
        "lite0": lambda: load_model("efficientnet_lite0", weights="random").model,
    }[network]()


Key = tuple[str, str, int, str]


def read(path: pathlib.Path) -> dict[Key, dict[str, float]]:
    """What was estimated so far, by network, CPU, threads and number format."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["network"], row["cpu"], row["threads"], row["format"]): row for row in map(json.loads, lines)}


def estimate_all(path: pathlib.Path) -> None:
    """Everything that is compared with, and was not estimated yet."""
    known = read(path)
    for network in FLAGS.networks:
        model = None
        for table in PUBLISHED:
            for number_format in table.times.get(network, {}) if table.cpu in FLAGS.cpus else ():
                if (network, table.cpu, table.threads, number_format) in known:
                    continue
                model = model or build(network)
                content = export(model, number_format)
                found = AArch64(content, cpu=table.cpu).estimate(table.threads)
                row = {"network": network, "cpu": table.cpu, "threads": table.threads, "format": number_format}
                row |= dataclasses.asdict(found)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def export(model: keras.Model, number_format: str) -> bytes:
    """The dense file."""
    sample = np.random.default_rng(0).standard_normal((4, *model.input_shape[1:])).astype(np.float32)
    return export_tflite(model, quantize=FORMATS[number_format], calibration=[sample], storage="dense").content


def compare(known: dict[Key, dict[str, float]]) -> None:
    """Prints the ratios, and how far they are off."""
    print("| network | CPU | published | format | published ratio | estimated | error |\n|---|---|---|---|---|---|---|")
    errors: dict[str, list[float]] = {}
    for table in PUBLISHED:
        for network, times in table.times.items():
            for number_format in list(times)[1:]:
                keys = [(network, table.cpu, table.threads, each) for each in ("float32", number_format)]
                if not all(key in known for key in keys):
                    continue
                dense, file = (known[key]["cycles"] for key in keys)
                published, estimated = times[number_format] / times["float32"], file / dense
                error = estimated / published - 1
                software = f"{table.software}, {table.threads} thread{'s' if table.threads > 1 else ''}"
                errors.setdefault(software, []).append(error)
                where = f"{software}, {table.board}"
                print(
                    f"| {network} | {table.cpu} | {where} | {number_format} | {published:.2f} | {estimated:.2f} | "
                    f"{error:+.0%} |"
                )
    for software, found in errors.items():
        print(f"\n{software}: mean error {np.mean(np.abs(found)):.0%}, largest {max(map(abs, found)):.0%}")


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    path = pathlib.Path(FLAGS.output)
    estimate_all(path)
    compare(read(path))


if __name__ == "__main__":
    app.run(main)
