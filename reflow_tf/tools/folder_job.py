"""What the tools share that write a folder from a .tflite file and a few real inputs."""

import dataclasses

from absl import flags

from reflow_tf.choices import check_between
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.tools import command_line
from reflow_tf.tools.shared_flags import AS_RECORDED, define_inputs, define_overwrite, define_preprocess


@dataclasses.dataclass(frozen=True)
class FolderJob:
    """What to write, and where.

    Attributes:
        source: the file, and the images.
        output_dir: the folder.
        num_inputs: of the images.
        overwrite: whether a folder of an earlier run may be replaced.

    Raises:
        InputError: no .tflite file, or a number of inputs below one.
    """

    source: EvaluateConfig
    output_dir: str
    num_inputs: int
    overwrite: bool

    def __post_init__(self) -> None:
        check_between("num_inputs", self.num_inputs, 1)
        if not self.source.model.endswith(".tflite"):
            raise InputError(f"--model must be a .tflite file. Received: {self.source.model}")


class FolderFlags:
    """The flags for it.

    Args:
        own: of the tool.
        model_help: what --model is.
        output_dir: the default.
    """

    def __init__(self, own: flags.FlagValues, model_help: str, output_dir: str):
        self._model = flags.DEFINE_string("model", None, model_help, flag_values=own)
        self._data = define_inputs(own)
        self._num_inputs = flags.DEFINE_integer(
            "num_inputs", 4, "Inputs that go into the folder, drawn evenly from all.", flag_values=own
        )
        self._preprocess = define_preprocess(own, AS_RECORDED)
        self._output_dir = flags.DEFINE_string(
            "output_dir", output_dir, "The folder to write; it must not exist yet.", flag_values=own
        )
        self._overwrite = define_overwrite(own, "Replace a folder that this tool wrote.")

    def read(self) -> FolderJob:
        """The parsed flags, checked; raises InputError."""
        model, data = command_line.require(self._model), command_line.require(self._data)
        source = EvaluateConfig(model, data, preprocess=self._preprocess.value)
        return FolderJob(source, self._output_dir.value, self._num_inputs.value, self._overwrite.value)
