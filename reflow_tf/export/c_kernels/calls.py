"""What a layer becomes: a call of a kernel, and the constants that it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from reflow_tf.export.c_kernels.network import Layer, Tensor


@dataclass(frozen=True)
class Call:
    """A call of a kernel.

    Attributes:
        layer: that it computes.
        function: of kernels.h.
        structure: the struct that the function takes first.
        fields: of the struct, in C or as Python numbers; a mapping is a struct in it.
        arrays: constants of their own, by the path of the field that points to them: 'rescaling.shifts'.
        inputs: activations that the function reads, in its order.
        output: activation that it writes.
        scratch_bytes: memory that it needs meanwhile, as its last argument; 0: it takes none.
        in_place: inputs on whose memory it may write.
        lead_bytes: so far in front of its only input's memory, or further, its output may begin and overlap it, since
            it is done with what it writes over; None: it may not.
        storage: of the weights: 'sparse', 'dense', or '' without weights.
    """

    layer: Layer
    function: str
    structure: str
    fields: Mapping[str, object]
    inputs: tuple[Tensor, ...]
    output: Tensor
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    scratch_bytes: int = 0
    in_place: tuple[Tensor, ...] = ()
    lead_bytes: int | None = None
    storage: str = ""

    @property
    def size_bytes(self) -> int:
        """Of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())
