"""The flags that several commands share, each defined once, with its full help text."""

from typing import Any

from absl import flags

from reflow_tf.choices import BALLASTS, TARGETS, TASKS
from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.targets.xnnpack import DEVICES
from reflow_tf.tools import command_line

_PRUNE = PruneConfig()
_JOB = JobConfig(model="", output_dir="")
_ZOO = (
    "mobilenet, mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large, efficientnet_b0, efficientnet_lite0, "
    "efficientnet_lite1, efficientnet_lite2, resnet50, resnet20, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, "
    "regnet_x_400mf, regnet_x_800mf, regnet_x_1_6gf, regnet_x_3_2gf, regnet_x_8gf, regnet_x_16gf, regnet_x_32gf, "
    "resnet8, mobilenet_v1_025, ds_cnn"
)
_SOURCES = (
    "fashion_mnist (embedded{}), a folder of images in class sub-folders, {}an .npz with x (inputs of any kind){}, "
    "tfds:NAME[:SPLIT] (needs tensorflow-datasets), or python:MODULE:FUNCTION, a function that yields batches, "
    "x or (x, y) as in an .npz."
)
# What --preprocess=auto means for a file.
AS_RECORDED = "as the config.json beside the file says, which the pruning tool writes; without one, none"

KERAS_FILES = ".keras or Keras .h5"

Flags = flags.FlagValues
Flag = flags.FlagHolder


def define_model(own: Flags, files: str = KERAS_FILES) -> Flag[str | None]:
    """--model: a zoo name or a file; `files` says which kinds."""
    described = f"A zoo name ({_ZOO}) or the path of a {files} file, or of a Keras 2 SavedModel folder."
    return flags.DEFINE_string("model", None, described, flag_values=own)


def define_weights(own: Flags) -> Flag[str | None]:
    """--weights of a zoo model."""
    return flags.DEFINE_string(
        "weights",
        None,
        "For a zoo model: fashion_mnist (embedded; the default for mobilenet_v2, resnet8 and mobilenet_v1_025), "
        "imagenet (downloaded by keras.applications; the default for the others it has), random, or the path of a "
        "file: .weights.h5, .keras, Keras 2's .h5, torchvision- or timm-layout .safetensors, or .pth/.pt/.th (needs "
        "torch).",
        flag_values=own,
    )


def define_data(own: Flags) -> Flag[str | None]:
    """--data: inputs, with labels or without."""
    sources = _SOURCES.format(
        "; the default for the embedded weights",
        "a folder of plain images (no labels: agreement with the dense model replaces accuracy), ",
        " and perhaps y (class indices)",
    )
    return flags.DEFINE_string("data", None, f"What to calibrate and to score with: {sources}", flag_values=own)


def define_inputs(own: Flags) -> Flag[str | None]:
    """--data where only inputs are needed."""
    sources = _SOURCES.format("", "a folder of plain images, ", "")
    return flags.DEFINE_string("data", None, f"Where the inputs are from: {sources}", flag_values=own)


def define_labelled_data(own: Flags) -> Flag[str | None]:
    """--data where labels are needed."""
    sources = _SOURCES.format("", "", " and y (class indices)")
    return flags.DEFINE_string("data", None, f"What to score with, labelled: {sources}", flag_values=own)


def define_eval_data(own: Flags) -> Flag[str | None]:
    """--eval_data: inputs to score with."""
    return flags.DEFINE_string(
        "eval_data",
        None,
        "What to score with, from the same kinds of sources. Without it --data is split by --seed, and no input is on "
        "both sides.",
        flag_values=own,
    )


def define_class_names(own: Flags) -> Flag[str | None]:
    """--class_names: the order of the outputs."""
    return flags.DEFINE_string(
        "class_names",
        None,
        "A text file, one class a line, in the order of the model's outputs, so that a folder with only some of the "
        "classes scores correctly.",
        flag_values=own,
    )


def define_preprocess(
    own: Flags, auto: str = "what the zoo knows; none for a model file and for models that rescale by themselves"
) -> Flag[str]:
    """--preprocess; `auto` says what that means for this command."""
    return flags.DEFINE_string(
        "preprocess",
        _JOB.preprocess,
        f"Scaling of the pixels of images: auto ({auto}), tf, torch, caffe, lite, unit or none; or the means and stds "
        "of a pixel / 255 that the network was trained with, such as 0.49,0.48,0.45/0.25,0.24,0.26.",
        flag_values=own,
    )


def define_task(own: Flags) -> Flag[str]:
    """--task: what outputs are taken for."""
    return flags.DEFINE_string(
        "task",
        PruneConfig.task,
        f"What the network's outputs are: {', '.join(TASKS)}. classification: one number a class, scored by the right "
        "class. multi_label: a sigmoid for each of several labels, scored by how many labels are right. fidelity: "
        "numbers, of a regressor, an autoencoder or a map of pixels, scored by how far they are from those of the "
        "dense model, without labels. auto: classes where outputs end in a softmax or are a single sigmoid, where the "
        "model was compiled with a cross-entropy, or where the data has classes for labels.",
        flag_values=own,
    )


def define_metric(own: Flags, scored: str) -> Flag[str | None]:
    """--metric: a function of the user's own; `scored`, a sentence, says what it is called for."""
    return flags.DEFINE_string(
        "metric",
        None,
        "MODULE:FUNCTION, a function of yours: called with all outputs of the evaluation inputs, (n, ...) or a dict of "
        "the names of several outputs, and their labels, y or a dict of y_NAME where the data has them, it gives one "
        f"number; more is better. {scored}",
        flag_values=own,
    )


def define_image_size(own: Flags) -> Flag[int | None]:
    """--image_size of an open input."""
    return flags.DEFINE_integer(
        "image_size", None, "Height and width in pixels, where the model leaves them open.", flag_values=own
    )


def define_custom_objects(own: Flags) -> Flag[str | None]:
    """--custom_objects: the user's own layers."""
    return flags.DEFINE_string(
        "custom_objects",
        None,
        "For a model file with layers or functions of your own: MODULE, all that it defines, or MODULE:NAME,NAME. The "
        "module is imported, which runs it; the model file stays data.",
        flag_values=own,
    )


def define_batch_size(own: Flags) -> Flag[int]:
    """--batch_size on this machine."""
    return flags.DEFINE_integer("batch_size", _JOB.batch_size, "Inputs at a time, at most.", flag_values=own)


def define_prunable(own: Flags) -> Flag[str]:
    """--prunable: which kernels."""
    return flags.DEFINE_string(
        "prunable",
        _PRUNE.prunable,
        "target (what the target rewards), all, or a regular expression over layer paths. With --max_macs, kernels "
        "that it leaves out keep the channels that they give and take.",
        flag_values=own,
    )


def define_memory_budget(own: Flags) -> Flag[int | None]:
    """--memory_budget of what learns from many inputs."""
    return flags.DEFINE_integer(
        "memory_budget",
        _PRUNE.memory_budget,
        "Bytes that least_squares and distill may take, about, however many calibration inputs there are: what does "
        "not fit is computed again, or kept in TMPDIR. It changes the time, never the result. Default: a quarter of "
        "the memory of the machine or container.",
        flag_values=own,
    )


def define_target(own: Flags, default: str | None = _PRUNE.target, otherwise: str = "") -> Flag[str | None]:
    """--target; `otherwise` says what is taken where it is not given and has no default."""
    described = " ".join(f"{target.name}: {target.description}" for target in TARGETS.values())
    return flags.DEFINE_string("target", default, f"{described}{otherwise}", flag_values=own)


def define_device(own: Flags) -> Flag[str | None]:
    """--device: what a file for XNNPACK is made for."""
    return flags.DEFINE_string(
        "device",
        PruneConfig.device,
        "For --target=xnnpack: what the file is made for, which decides where sparse kernels pay: "
        + "; ".join(f"{name}: {device.description}" for name, device in DEVICES.items())
        + ". Default: they must pay on both.",
        flag_values=own,
    )


def define_ballast(own: Flags) -> Flag[str]:
    """--ballast: whether zeros may be added."""
    return flags.DEFINE_string(
        "ballast",
        PruneConfig.ballast,
        f"{', '.join(BALLASTS)}. auto: where too few weights are zero for sparse kernels, and they would pay all the "
        "same, exact rewriting adds zeros that change no output. off: it does not.",
        flag_values=own,
    )


def define_overwrite(own: Flags, what: str) -> Flag[bool]:
    """--overwrite; `what` it does, in a sentence."""
    return flags.DEFINE_bool("overwrite", False, what, flag_values=own)


class WorkerFlags:
    """The flags for who leads images through networks.

    Args:
        own: of the tool.
    """

    def __init__(self, own: Flags):
        self._flags = (
            flags.DEFINE_string(
                "workers",
                None,
                "Who leads images through networks: a number of processes on this machine, or tcp://HOST:PORT, a Dask "
                "scheduler that is already there, whose workers see --model and --data under the same paths (needs "
                "pip install 'reflow_tf[cluster]'). The result is the same bit for bit however many there are, with "
                "as many threads each. Default: this process.",
                flag_values=own,
            ),
            flags.DEFINE_integer(
                "threads_per_worker",
                None,
                "Threads of each of the --workers. Default: the cores of a machine, shared out among the workers on "
                "it.",
                flag_values=own,
            ),
        )

    def read(self) -> dict[str, Any]:
        """The parsed flags by their names, which are those of the fields."""
        return {flag.name: flag.value for flag in self._flags}


class JobFlags:
    """The flags for what a `JobConfig` says of the model and of the data.

    Args:
        own: of the tool.
        files: kinds of model files that it takes.
    """

    def __init__(self, own: Flags, files: str = KERAS_FILES):
        self._model = define_model(own, files)
        self._others = (
            define_weights(own),
            define_data(own),
            define_eval_data(own),
            define_class_names(own),
            define_preprocess(own),
            define_image_size(own),
            define_custom_objects(own),
            flags.DEFINE_integer(
                "calibration_samples",
                _JOB.calibration_samples,
                "Number of inputs that the criterion and the repair learn from.",
                flag_values=own,
            ),
            define_batch_size(own),
            flags.DEFINE_integer(
                "seed", _JOB.seed, "Seed of the draw of inputs, and of --weights=random.", flag_values=own
            ),
        )
        self._workers = WorkerFlags(own)

    def read(self) -> dict[str, Any]:
        """The parsed flags by their names, which are those of the fields; raises InputError without --model."""
        others = {flag.name: flag.value for flag in self._others}
        return {"model": command_line.require(self._model), **others, **self._workers.read()}


def name_model(model: str) -> str:
    """What results are called after: a zoo name as it is, a file without its folder and suffix."""
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.removesuffix(".keras").removesuffix(".h5").removesuffix(".tflite")
