"""Least squares of a layer's output: which weights to keep, and what they become, so that it computes a given target.

With x the pruned network's own input of the layer and t what the output should be, both with their means taken off,
the weights w of one output minimize E (w x - t)^2, which needs only the *normal equations* E x x^T and E t x^T. The
input of a pruned network is not the dense network's: what the layers before lost, this one makes up for.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from reflow_tf.sparsity.quadratic import minimize_rows

SHRINKAGE = 0.1
"""Share of the inputs' correlations that is not believed: a few hundred images have few independent ones."""
RIDGE = 0.03
"""Added to the diagonal, as a share of its mean: pulls the weights towards the dense ones."""
NUM_STEPS = 40
_FIRST_PENALTY = 0.1
_MOST_SOLVER_STEPS = 60
_SOLVED = 1e-3  # of the residual that outputs solved one by one leave
_ROUNDING = 1e-9  # of what the outputs are pulled by: where all read the same inputs, that alone is left by then
_TINY = 1e-12

Select = Callable[[np.ndarray], np.ndarray]
"""Energies in canonical layout -> mask with the pattern and the number of zeros that the plan asks for."""


@dataclasses.dataclass(frozen=True)
class NormalEquations:
    """What least squares needs to know of one layer; the outputs are split evenly and in order over groups.

    Attributes:
        gram: E x x^T, (groups, d, d) float64, positive semi-definite.
        cross: E t x^T, (groups, outputs of a group, d) float64.
        power: E t^2, (groups, outputs of a group) float64.
    """

    gram: np.ndarray
    cross: np.ndarray
    power: np.ndarray

    @classmethod
    def of_own_output(cls, gram: np.ndarray, weights: np.ndarray) -> "NormalEquations":
        """Those of a layer whose target is what it computes now from the same inputs: t = w x."""
        cross = weights @ gram
        return cls(gram, cross, np.einsum("god,god->go", cross, weights))

    def regularized(self, weights: np.ndarray, shrinkage: float = SHRINKAGE, ridge: float = RIDGE) -> "NormalEquations":
        """Correlations shrunk towards none and weights towards `weights`, (groups, outputs of a group, d).

        Both are ridges towards `weights`: one of each input's own variance, one the same for all inputs. Without them
        the fit knows the calibration images by heart: MobileNetV2's late layers keep hundreds of weights an output.
        """
        variances = np.einsum("gdd->gd", self.gram)
        pull = shrinkage * variances + ridge * max(float(variances.mean()), _TINY)
        gram = (1 - shrinkage) * self.gram + pull[:, :, None] * np.eye(self.gram.shape[-1])
        return NormalEquations(gram, (1 - shrinkage) * self.cross + pull[:, None] * weights, self.power)

    @functools.cached_property
    def deviations(self) -> np.ndarray:
        """The inputs' standard deviations, (groups, d)."""
        return np.sqrt(np.maximum(np.einsum("gdd->gd", self.gram), _TINY))

    @functools.cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, (groups, d), and eigenvectors, (groups, d, d), of the inputs' correlations."""
        deviations = self.deviations
        values, vectors = np.linalg.eigh(self.gram / (deviations[:, :, None] * deviations[:, None]))
        return values, vectors

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """Of `gram`."""
        return np.linalg.inv(self.gram)

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """E (w x - t)^2 of every output, (groups, outputs of a group)."""
        quadratic = np.einsum("god,god->go", weights @ self.gram, weights)
        return self.power - 2 * np.einsum("god,god->go", weights, self.cross) + quadratic

    def solve(self, kept: np.ndarray) -> np.ndarray:
        """The weights of least error among those that are 0 where `kept`, (groups, outputs of a group, d), is False."""
        groups = zip(self.gram, self.inverse, self.cross @ self.inverse, kept, strict=True)
        return np.stack([minimize_rows(gram, best, alive, inverse) for gram, inverse, best, alive in groups])


def choose_mask(equations: NormalEquations, weights: np.ndarray, worth: np.ndarray, select: Select) -> np.ndarray:
    """The kept weights, searched together with their values by ADMM, as ALPS does (Meng et al., arXiv 2406.07831).

    What the errors cost together is split in two: weights without zeros follow the equations, a copy of them follows
    the mask, and a growing penalty brings both together. The cost is a Kronecker product, the outputs' worth times the
    inputs' Gram, so its eigenvectors are those of the two (as in K-FAC, Martens & Grosse, arXiv 1503.05671).

    Args:
        equations: regularized, so that `gram` can be inverted.
        weights: where the search starts, (groups, outputs of a group, d).
        worth: what errors in two outputs cost together, (groups, outputs of a group, outputs of a group), positive
            definite; on its diagonal the squares of how much each counts.
        select: the plan's pattern; it sees squares of the shape of `weights`: the nearest copy with the mask's shape,
            which ADMM asks for, keeps the groups whose squares have the highest mean, not those of absolute values.

    Returns:
        Boolean, of the shape of `weights`.
    """
    deviations, (values, vectors) = equations.deviations, equations.spectrum
    gains, correlations = _split_worth(worth)
    # float32 from here on: it is twice as fast, and what comes of it is a mask.
    values, vectors = values.astype(np.float32), vectors.astype(np.float32)
    worths, turns = (part.astype(np.float32) for part in np.linalg.eigh(correlations))
    curvature = np.maximum(worths, 0)[:, :, None] * np.maximum(values, 0)[:, None]
    start = (weights * gains[..., None] * deviations[:, None]).astype(np.float32)
    pulls = (correlations @ (equations.cross / deviations[:, None] * gains[..., None])).astype(np.float32)
    mask = select(np.square(start))
    sparse, dual, penalty = np.where(mask, start, 0), np.zeros_like(pulls), _FIRST_PENALTY
    for step in range(NUM_STEPS):
        rotated = turns.transpose(0, 2, 1) @ (pulls + penalty * sparse - dual) @ vectors
        dense = turns @ (rotated / (curvature + penalty)) @ vectors.transpose(0, 2, 1)
        wanted = dense + dual / penalty
        before, mask = mask, select(np.square(wanted))
        sparse = np.where(mask, wanted, 0)
        dual += penalty * (dense - sparse)
        if step % 3 == 2:
            changed = float(np.sum(mask != before)) / max(float(np.sum(mask)), 1.0)
            penalty *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            if changed == 0:
                break
    return mask


def solve_together(equations: NormalEquations, kept: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """The weights of least cost among those that are 0 where `kept` is False, errors of outputs making up for others.

    Every output alone is `equations.solve`; from there on conjugate gradients, each step of which lowers the cost.

    Args:
        equations: regularized.
        kept: (groups, outputs of a group, d) boolean.
        worth: as in `choose_mask`.

    Returns:
        (groups, outputs of a group, d) float64.
    """
    alone = equations.solve(kept)
    gains, correlations = _split_worth(worth)
    if not np.any(correlations - np.eye(correlations.shape[-1])):
        return alone
    scale = gains[..., None] * equations.deviations[:, None]
    inputs = equations.gram / (equations.deviations[:, :, None] * equations.deviations[:, None])
    weights = alone * scale
    pulls = equations.cross / equations.deviations[:, None] * gains[..., None]
    residual = np.where(kept, correlations @ (pulls - weights @ inputs), 0.0)
    direction, power = residual.copy(), float(np.sum(residual**2))
    goal = max(_SOLVED**2 * power, _ROUNDING**2 * float(np.sum((correlations @ pulls) ** 2)))
    for _ in range(_MOST_SOLVER_STEPS):
        if power <= goal:
            break
        pushed = np.where(kept, correlations @ (direction @ inputs), 0.0)
        length = power / float(np.sum(direction * pushed))
        weights += length * direction
        residual -= length * pushed
        before, power = power, float(np.sum(residual**2))
        direction = residual + power / before * direction
    return np.where(kept, weights / scale, 0.0)


def _split_worth(worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each output counts, (groups, outputs of a group), and the correlations of what errors in two cost."""
    gains = np.sqrt(np.einsum("goo->go", worth))
    return gains, worth / (gains[:, :, None] * gains[:, None])
