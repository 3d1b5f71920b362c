"""Rows that are mostly zeros as a stream of steps and weights: two bytes for each non-zero.

One int16 for each non-zero: weight * 256 + step, where step, 0 to 255, is how far it lies behind the last one, and for
the first, behind position 0. An entry of weight 0 ends the row. A gap of more than 255 is crossed by resting on a zero:
an entry of weight 1 and one of weight -1, which together add nothing.
"""

import numpy as np

_MOST_STEP = 255


def encode(rows: np.ndarray) -> np.ndarray:
    """The int16 stream of int8 rows (outputs, inputs)."""
    stream: list[int] = []
    for row in rows:
        place = 0
        for position in np.flatnonzero(row).tolist():
            while position - place > _MOST_STEP:
                stream += [256 + _MOST_STEP, -256]
                place += _MOST_STEP
            stream.append(int(row[position]) * 256 + position - place)
            place = position
        stream.append(0)
    return np.array(stream, np.int16)


def decode(stream: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The int8 rows of a stream.

    Args:
        stream: what `encode` returned.
        shape: (outputs, inputs).
    """
    rows = np.zeros(shape, np.int64)
    row = place = 0
    for entry in stream.tolist():
        weight, step = entry >> 8, entry & 255
        place += step
        if weight == 0:
            row, place = row + 1, 0
        else:
            rows[row, place] += weight
    return rows.astype(np.int8)
