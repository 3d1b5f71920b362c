"""Makes the pages and pictures of docs/gallery: real runs, as their reader would make them.

    python tools/make_gallery.py --imagenet=shared/data --cifar10=shared/data --work=gallery_runs

Every entry is one command, and what it writes is copied. A run whose results are in --work already is not made again;
the longest take half an hour. Entries whose data is not given are left as they are.
"""

import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("imagenet", None, "A folder with natural_images/, imagenet_val_dev/, imagenet_wnids.txt, weights/.")
flags.DEFINE_string("cifar10", None, "A folder with cifar10_calibration.npz, cifar10_test.npz and weights/.")
flags.DEFINE_string("work", "gallery_runs", "Where the runs write.")
flags.DEFINE_string("output", "docs/gallery", "Where pages and pictures go.")
flags.DEFINE_list("only", None, "Names of entries. Default: all.")

MOST_BYTES = 5_000_000
MOBILENET = (
    *("--model={imagenet}/weights/mobilenet_imagenet.keras", "--preprocess=tf"),
    *("--eval_data={imagenet}/imagenet_val_dev", "--class_names={imagenet}/imagenet_wnids.txt"),
)
IMAGENET = (
    *(*MOBILENET, "--data={imagenet}/natural_images", "--calibration_samples=1000"),
    *("--allocation=uniform", "--repair=least_squares"),
)
CIFAR10 = (
    *("--model=resnet20", "--weights={cifar10}/weights/resnet20_cifar10.safetensors"),
    *("--data={cifar10}/cifar10_calibration.npz", "--eval_data={cifar10}/cifar10_test.npz"),
    "--calibration_samples=500",
)
COMPARED = (*CIFAR10, "--sparsities=0.3,0.4,0.5,0.6,0.7,0.8,0.9")
MOBILENETS_COMPARED = (*MOBILENET, "--data={imagenet}/imagenet_dev", "--calibration_samples=500")
MOBILENETS_SPARSITIES = "0.5,0.7,0.8,0.9"
FIGURES = ("figure_1", "figure_2", "figure_3", "figure_4", "figure_5")


class Entry(NamedTuple):
    """One run: the tool, its flags, which of its files are shown under which names, and the folder that some share."""

    tool: str
    arguments: tuple[str, ...]
    shown: dict[str, str]
    folder: str | None = None


ENTRIES = {
    "embedded": Entry("prune", ("--model=mobilenet_v2",), {"report.html": "embedded.html"}),
    "mobilenet_70": Entry("prune", (*IMAGENET, "--sparsity=0.7"), {"report.html": "mobilenet_70.html"}),
    "mobilenet_80": Entry("prune", (*IMAGENET, "--sparsity=0.8"), {"report.html": "mobilenet_80.html"}),
    "resnet20": Entry(
        "prune",
        (*CIFAR10, "--target=storage", "--sparsity=0.8", "--repair=least_squares"),
        {"report.html": "resnet20.html"},
    ),
    "microcontroller": Entry(
        "prune",
        ("--model=resnet8", "--target=cortex_m", "--sparsity=0.8", "--allocation=erk", "--repair=least_squares"),
        {"report.html": "microcontroller.html"},
    ),
    "frontier": Entry(
        "frontier",
        ("--model=resnet8", "--device=cortex_m4", "--calibration_samples=500"),
        {"frontier.html": "frontier.html"},
    ),
    **{
        f"paper_{name}": Entry("compare", (*COMPARED, f"--preset={name}"), {f"{name}.svg": f"{name}.svg"}, "paper")
        for name in FIGURES
    },
    "paper_table_1": Entry(
        "compare",
        (*COMPARED, "--preset=table_1"),
        {"compare.html": "paper.html", "table_1.csv": "table_1.csv"},
        "paper",
    ),
    **{
        f"mobilenet_{name}": Entry(
            "compare",
            (*MOBILENETS_COMPARED, f"--preset={name}", f"--sparsities={sparsities}"),
            {file: f"mobilenet_{file}"},
            "paper_mobilenet",
        )
        for name, file, sparsities in (
            *((name, f"{name}.svg", MOBILENETS_SPARSITIES) for name in FIGURES if name != "figure_3"),
            ("figure_3", "figure_3.svg", "0.3,0.5,0.6,0.7,0.8,0.9"),
            ("table_1", "table_1.csv", MOBILENETS_SPARSITIES),
        )
    },
}


def make(name: str, entry: Entry) -> bool:
    """Runs the command unless its results are there, and copies what is shown; False where its data is not given."""
    given = {key: FLAGS[key].value for key in ("imagenet", "cifar10")}
    if any("{" + key + "}" in argument and given[key] is None for argument in entry.arguments for key in given):
        return False
    folder = pathlib.Path(FLAGS.work) / (entry.folder or name)  # the figures of one network share their cells
    if not all((folder / file).exists() for file in entry.shown):
        arguments = [argument.format(**given) for argument in entry.arguments]
        command = [sys.executable, "-m", f"reflow_tf.tools.{entry.tool}", *arguments, f"--output_dir={folder}"]
        subprocess.run(command, check=True)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    for file, shown in entry.shown.items():
        shutil.copyfile(folder / file, output / shown)
    return True


def main(_: list[str]) -> None:
    for name, entry in ENTRIES.items():
        if FLAGS.only is None or name in FLAGS.only:
            print(name, "made" if make(name, entry) else "left: its data is not given", flush=True)
    size = sum(path.stat().st_size for path in pathlib.Path(FLAGS.output).iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"The gallery must have at most {MOST_BYTES:,} bytes. Received: {size:,}")


if __name__ == "__main__":
    app.run(main)
