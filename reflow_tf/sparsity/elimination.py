"""Greedy elimination: weights leave one by one, whichever adds least to a quadratic, and the order is the score.

A score is what the quadratic rose by when the weight left, made strictly increasing along the order. So the masks that
such scores give are nested, and within one block each of them removes the first so many weights of one order.
"""

import numpy as np


def eliminate_with_updates(weights: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """Exact OBS: after each elimination the weights that remain move to where the quadratic is least.

    The next to leave is argmin w_p^2 / (2 [H^-1]_pp); then w -= w_p [H^-1]_:p / [H^-1]_pp, and the inverse of what
    remains is H^-1 - [H^-1]_:p [H^-1]_p: / [H^-1]_pp (Frantar & Alistarh, arXiv 2208.11580, lemma 1).

    Args:
        weights: (n, d) float64.
        inverses: H^-1, (n, d, d) float64, positive definite. Both arrays are used up.

    Returns:
        (n, d) float32 scores.
    """
    rows = np.arange(len(weights))
    diagonals, product = np.einsum("nii->ni", inverses), np.empty_like(inverses)
    order = _Order(weights.shape)
    while order.num_left:
        safe = np.where(order.alive, diagonals, 1.0)  # what has left keeps a diagonal of 0, or of a rounding error
        leaving = order.remove(np.square(weights) / (2 * safe))
        columns = inverses[rows, :, leaving] / np.sqrt(safe[rows, leaving])[:, None]
        weights -= (weights[rows, leaving] / np.sqrt(safe[rows, leaving]))[:, None] * columns
        inverses -= np.multiply(columns[:, :, None], columns[:, None, :], out=product)
        if (kept := order.forget()) is not None:  # the steps to come are as much shorter
            weights = np.take_along_axis(weights, kept, axis=1)
            inverses = inverses[rows[:, None, None], kept[:, :, None], kept[:, None, :]]
            diagonals, product = np.einsum("nii->ni", inverses), np.empty_like(inverses)
    return order.scores


def eliminate_without_updates(weights: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """The weights that remain stay; what left before counts through the pairs: 1/2 w_P^T H_PP w_P for all P that left.

    Args:
        weights: (n, d) float64.
        matrices: H, (n, d, d) float64.

    Returns:
        (n, d) float32 scores.
    """
    rows = np.arange(len(weights))
    pairs = matrices * weights[:, :, None] * weights[:, None, :]
    rises = 0.5 * np.einsum("nii->ni", pairs)
    order = _Order(weights.shape)
    while order.num_left:
        rises += pairs[rows, :, order.remove(rises)]
    return order.scores


class _Order:
    """Who is left in each of n rows, and the scores of those that are not.

    Attributes:
        scores: (n, d) float32, of those that left.
        alive: (n, w) boolean, False for those that left; w is d until some are forgotten.
        num_left: how many are left in each row.
    """

    def __init__(self, shape: tuple[int, int]):
        self.scores = np.zeros(shape, np.float32)
        self.alive = np.ones(shape, bool)
        self.num_left = shape[1]
        self._places = np.tile(np.arange(shape[1]), (shape[0], 1))  # column of `alive` -> column of `scores`
        self._last = np.zeros(shape[0], np.float32)

    def remove(self, rises: np.ndarray) -> np.ndarray:
        """Removes the weight with the least rise from each row and returns which, (n,), a column of `alive`."""
        rows = np.arange(len(rises))
        leaving = np.argmin(np.where(self.alive, rises, np.inf), axis=1)
        rise = np.clip(rises[rows, leaving], 0, np.finfo(np.float32).max / 2).astype(np.float32)
        self._last = np.maximum(rise, np.nextafter(self._last, np.float32(np.inf)))
        self.scores[rows, self._places[rows, leaving]] = self._last
        self.alive[rows, leaving] = False
        self.num_left -= 1
        return leaving

    def forget(self) -> np.ndarray | None:
        """Once a quarter of `alive` has left, cuts it off: (n, num_left), the columns that stay, in their order."""
        if self.num_left > 0.75 * self.alive.shape[1]:
            return None
        kept = np.nonzero(self.alive)[1].reshape(len(self.alive), self.num_left)
        self._places = np.take_along_axis(self._places, kept, axis=1)
        self.alive = np.ones(kept.shape, bool)
        return kept
