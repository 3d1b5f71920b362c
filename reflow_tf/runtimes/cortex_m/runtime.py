"""A model as C sources on an emulated microcontroller."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.runtimes.cortex_m.boards import BOARDS
from reflow_tf.runtimes.cortex_m.emulator import Execution, emulator_name, execute
from reflow_tf.runtimes.cortex_m.toolchain import Sizes, build_image, compiler_name
from reflow_tf.runtimes.device_script import join, split, to_floats, to_types
from reflow_tf.runtimes.runtime import SeveralOfEach, check_batch, make_inputs

DEFAULT_BOARD = "m4"


class End(NamedTuple):
    """An input or an output.

    Attributes:
        shape: (1, *sample).
        quantization: scale and zero point: real = (stored - zero_point) * scale.
    """

    shape: tuple[int, ...]
    quantization: tuple[float, int]


class CortexM(SeveralOfEach):
    """C sources of an int8 model, on a Cortex-M that QEMU plays.

    The sources define `void reflow_invoke(const int8_t *input, int8_t *output)`, and `REFLOW_INPUT_BYTES` and
    `REFLOW_OUTPUT_BYTES` in model.h; several inputs lie one after the other, and so do several outputs. Its cost is the
    number of instructions that one call executes, the same every time, and never a time: the emulator knows no caches,
    flash wait states or pipelines. It counts what the CPU is given: a skipped instruction of an IT block counts, as
    does the LE at the end of each turn of an M55's loop.

    Args:
        files: name -> text of the C sources and headers.
        inputs: in the order in which they lie.
        outputs: the same.
        board: of `BOARDS`.
        optimisation: of GCC: '-O3', '-O2' or '-Os'.

    Raises:
        InputError: a batch other than 1, no such board, a program is not installed, the sources do not compile, or do
            not fit the board.
    """

    unit = "instructions"

    def __init__(
        self,
        files: Mapping[str, str],
        inputs: Sequence[End],
        outputs: Sequence[End],
        board: str = DEFAULT_BOARD,
        optimisation: str = "-O3",
    ):
        if board not in BOARDS:
            raise InputError(f"The board must be one of {', '.join(BOARDS)}. Received: {board}")
        self._input_shapes, self._output_shapes = ([end.shape for end in ends] for ends in (inputs, outputs))
        if any(shape[:1] != (1,) for shape in (*self._input_shapes, *self._output_shapes)):
            raise InputError(
                f"A microcontroller runs batches of 1. Received: {self._input_shapes} and {self._output_shapes}"
            )
        self._inputs, self._outputs = (
            [{"dtype": np.int8, **end._asdict()} for end in ends] for ends in (inputs, outputs)
        )
        self._optimisation = optimisation
        sizes = math.prod(self.input_shape), math.prod(self.output_shape)
        self._image = build_image(files, BOARDS[board], *sizes, optimisation)

    @property
    def name(self) -> str:
        """The compiler, the emulator and the board, with their versions."""
        return f"C, {compiler_name()} {self._optimisation}, {emulator_name(self._image)}"

    @property
    def sizes(self) -> Sizes:
        """Flash and RAM, of the model's own sources and of the whole image."""
        return self._image.sizes

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample).

        Raises:
            InputError: no samples, samples of another shape, or the program crashes; the message says why.
        """
        return to_floats(split(self.run_int8(self._to_int8(batch)), self._outputs), self._outputs)

    def run_int8(self, batch: np.ndarray) -> np.ndarray:
        """Computes int8 outputs (n, *output) of int8 samples (n, *sample), as the device does.

        Raises:
            InputError: as `run`; or the samples are not int8.
        """
        return self._execute(batch).outputs.reshape(len(batch), *self.output_shape[1:])

    def measure(self) -> float:
        """Instructions that one call of `reflow_invoke` executes, for an input by seed; input and output are not in it.

        Raises:
            InputError: the program crashes.
        """
        return float(sum(self.profile().values()))

    def profile(self) -> Mapping[str, int]:
        """The same instructions by function of the image, most first; what is inlined counts where it ended up.

        Raises:
            InputError: the program crashes.
        """
        return self._measured.profiles[0]

    def memory_bytes(self) -> int | None:
        """RAM that the model's own sources take; input, output and the stack come on top."""
        return self.sizes.ram_bytes

    def stack_bytes(self) -> int:
        """How far one call of `reflow_invoke` reaches down the stack, and a few words of what calls it.

        Raises:
            InputError: the program crashes.
        """
        return self._measured.stack_bytes

    @functools.cached_property
    def _measured(self) -> Execution:
        return self._execute(self._to_int8(make_inputs(self.input_shape)), count=True)

    def _to_int8(self, batch: np.ndarray) -> np.ndarray:
        check_batch(batch, self.input_shape)
        return join(to_types(batch, self._inputs))

    def _execute(self, batch: np.ndarray, count: bool = False) -> Execution:
        check_batch(batch, self.input_shape)
        if batch.dtype != np.int8:
            raise InputError(f"A microcontroller's samples must be int8. Received: {batch.dtype}")
        return execute(self._image, batch.reshape(len(batch), -1), math.prod(self.output_shape), count)
