"""TFLM's format of pruned tensors: a bit for each weight, and the weights that are not zero.

The operator TFLM_DECODE, type 2 'prune', expands it (tensorflow/lite/micro/kernels/decode_state_prune.cc of
tflite-micro). Its first input has a bit for each element in C order, the most significant bit of a byte first, set
where the element is not zero. Its second, the ancillary tensor, has 16 bytes of metadata (byte 0 the type, byte 1 the
version of the metadata, byte 4 that of 'prune': decode_state.h, decode_state_prune.h) and then the non-zero elements
in the same order. Elements without a bit become the zero point of the output, which filters have at 0. TFLM ships no
encoder for it: compression/pruning.py is a stub.
"""

import dataclasses
import math

import numpy as np

from reflow_tf.errors import InputError

OPERATOR = "TFLM_DECODE"
_METADATA_BYTES = 16
_HEADER = (2, 1, 1)


@dataclasses.dataclass(frozen=True)
class Bitmap:
    """A tensor in this form.

    Attributes:
        bits: uint8 (ceil(elements / 8),), the last byte filled up with zeros.
        ancillary: uint8 (16 + bytes of the non-zero elements,).
    """

    bits: np.ndarray
    ancillary: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Bytes of both."""
        return self.bits.nbytes + self.ancillary.nbytes


def measure(num_elements: int, num_nonzeros: int, itemsize: int) -> int:
    """Bytes that such a tensor takes: elements / 8, the non-zero ones, and 16."""
    return math.ceil(num_elements / 8) + num_nonzeros * itemsize + _METADATA_BYTES


def encode(dense: np.ndarray) -> Bitmap:
    """Encodes an array of any type and rank whose zero point is 0."""
    nonzero = dense.reshape(-1) != 0
    metadata = np.zeros(_METADATA_BYTES, np.uint8)
    metadata[[0, 1, 4]] = _HEADER
    values = np.ascontiguousarray(dense.reshape(-1)[nonzero]).view(np.uint8)
    return Bitmap(np.packbits(nonzero), np.concatenate([metadata, values]))


def decode(encoded: Bitmap, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array again.

    Raises:
        InputError: another type or version of DECODE, or numbers of bits and values that contradict the shape.
    """
    size, dtype = math.prod(shape), np.dtype(dtype)
    header = tuple(int(byte) for byte in encoded.ancillary[[0, 1, 4]]) if encoded.ancillary.size > 4 else ()
    if header != _HEADER:
        raise InputError(f"{OPERATOR} is read of type and versions {_HEADER}. Received: {header}")
    nonzero = np.unpackbits(encoded.bits).astype(bool)
    expected = measure(size, int(np.count_nonzero(nonzero)), dtype.itemsize)
    if encoded.size_bytes != expected or nonzero[size:].any():
        raise InputError(
            f"A tensor of {OPERATOR} must have a bit for each of its {size} elements and a value for each bit that is "
            f"set: {expected} bytes. Received: {encoded.size_bytes}"
        )
    dense = np.zeros(size, dtype)
    dense[nonzero[:size]] = encoded.ancillary[_METADATA_BYTES:].view(dtype)
    return dense.reshape(shape)
