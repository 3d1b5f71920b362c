"""What every runtime offers: bytes and a batch in, outputs out."""

from typing import Protocol

import numpy as np


class Runtime(Protocol):
    """A file, loaded and ready to run.

    Attributes:
        name: what runs it, with the version, for reports.
        input_shape: (batch, *sample) as the file fixes it.
        output_shape: (batch, *output) as the file fixes it.
    """

    @property
    def name(self) -> str: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def output_shape(self) -> tuple[int, ...]: ...

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes the outputs of any number of samples.

        Args:
            batch: float32 (n, *sample), n at least 1.

        Returns:
            float32 (n, *output).

        Raises:
            InputError: the samples have another shape than the file takes.
        """
        ...
