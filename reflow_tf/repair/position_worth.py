"""Where in an image errors matter: least squares counts such positions the more.

To second order, errors e at the positions p of what a layer gives cost half the sum of (g_p e_p)^2, g by the Fisher of
its outputs. `fisher.gather_output_worth` says what that makes of outputs, all positions alike; here is what it makes of
positions, all outputs alike. GuidedQuant (arXiv 2505.07004) weighs tokens of language models so.

A root is taken of it, since one draw of the Fisher knows little of a single position, and within each image the mean is
1: between images it would say how sure the dense network is of each, which is another thing once errors are large.

Divergence from the dense network on images that were not fitted to, all positions alike and by their worth: MobileNetV2
at 70 % 1.026 and 0.964 with 194 images, 0.708 and 0.656 with 1,100 (there depthwise kernels, too); MobileNet at 75 % of
its multiply-adds, 1,100 images, 0.200 and 0.188; ResNet-20 at 80 % of all kernels, 500 images, 0.179 and 0.137, at 90 %
0.645 and 0.622. Of the first and the third, without the mean of 1: 0.981 and 0.207; of the first, two draws and no
root: 0.969.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.fisher import OutputGradients, differentiate_outputs, find_layers
from reflow_tf.models.inference import infer
from reflow_tf.models.ledger import Held
from reflow_tf.repair.contract import PrunedModel
from reflow_tf.sparsity.layers import LayerSpec

_INPUTS_AT_A_TIME = 8  # whose activations are held for the way back, beside what lies between layers


class PositionWorth:
    """What the positions of inputs are worth, in the dense network, by one draw of the Fisher.

    Args:
        pruned: its model may be in any state when the worth is asked for.
        specs: position of a step -> the kernel of its layer.
        late: the step from which on the worth is found by itself: most inputs are asked for no other, and the way back
            from the prediction to there is short. 0: maps are small throughout.
    """

    def __init__(self, pruned: PrunedModel, specs: Mapping[int, LayerSpec], late: int = 0):
        self._late = late
        stretches = (
            {step: spec for step, spec in specs.items() if (step >= late) == is_late} for is_late in (True, False)
        )
        at_a_time = _INPUTS_AT_A_TIME if late else None
        self._stretches = [_Stretch(pruned, of_stretch, at_a_time) for of_stretch in stretches]

    def __call__(self, inputs: np.ndarray, draw: int, position: int = 0) -> dict[int, tf.Tensor]:
        """Of each step: what the positions of its layer's outputs are worth.

        Args:
            inputs: (n, ...).
            draw: a number, another one for other inputs.
            position: of a step; what is late is all that is found, unless it is earlier.

        Returns:
            Position of a step -> (n, *spatial) float32, with the mean 1 for each input; steps whose layers have one
            position, or on which the prediction does not depend, are missing.

        Raises:
            InputError: gradients that are not finite.
        """
        late, early = self._stretches
        return late(inputs, draw) | (early(inputs, draw) if position < self._late else {})


class _Stretch:
    """Steps of which the worth is found together, so many inputs at a time; None: all."""

    def __init__(self, pruned: PrunedModel, specs: Mapping[int, LayerSpec], at_a_time: int | None):
        self._pruned, self._at_a_time = pruned, at_a_time
        self._layers = find_layers(pruned.model, [spec.path for spec in specs.values()])
        self._steps = {spec.path.rpartition("/")[0]: step for step, spec in specs.items()}
        self._gradients: OutputGradients | None = None

    def __call__(self, inputs: np.ndarray, draw: int) -> dict[int, tf.Tensor]:
        if not self._steps:
            return {}
        found: dict[int, list[np.ndarray]] = {}
        with self._pruned.as_dense() as model:
            size = self._at_a_time or len(inputs)
            for start in range(0, len(inputs), size):
                batch = inputs[start : start + size]
                if self._gradients is None:
                    outputs = infer(model, tf.convert_to_tensor(batch[:1]))
                    given = batch.shape[1:], outputs, _sum_over_channels, self._pruned.task
                    self._gradients = differentiate_outputs(model, self._layers, *given)
                for name, (squares,) in self._gradients(tf.convert_to_tensor(batch), tf.constant(draw + start)).items():
                    found.setdefault(self._steps[name], []).append(squares.numpy())
        each = {step: np.concatenate(parts) for step, parts in found.items()}
        return {
            step: tf.convert_to_tensor(_spread(squares))
            for step, squares in each.items()
            if squares.ndim > 1 and squares[0].size > 1
        }


def add_worth(held: Held, specs: Mapping[int, LayerSpec]) -> Held:
    """What lies between the steps with what positions are worth for those that are still to come."""
    sizes = [
        (during - between) // specs[step].canonical_shape[0] if step in specs else 0
        for step, (during, between) in enumerate(zip(held.during, held.between, strict=False))
    ]
    left = np.cumsum([0, *reversed(sizes)])[::-1].tolist()
    return Held(_add(held.between, left), _add(held.during, left))


def _add(numbers: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(numbers, more, strict=False))


def _sum_over_channels(gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return (tf.reduce_sum(tf.square(gradients), axis=-1),)


def _spread(squares: np.ndarray) -> np.ndarray:
    """Roots of squares (n, *spatial) over their mean in each input; 1 where there are none."""
    if not np.isfinite(squares).all():
        raise InputError("Activations and gradients must be finite. Received: NaN or infinity for a calibration input")
    roots = np.sqrt(squares)
    means = roots.mean(axis=tuple(range(1, roots.ndim)), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.divide(roots, means, out=np.ones_like(roots), where=means > 0)
