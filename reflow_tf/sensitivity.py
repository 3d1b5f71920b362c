"""How much each kernel's sparsity costs the whole network, measured at the network's output, without labels.

One kernel at a time is pruned and refitted (`sparsity.reconstruction`) at several sparsities while everything else
stays dense; the batch norm behind it gets the moments that its new output has, which follow from the Gram of its input.
A kernel that nothing can be fitted to (`gram.is_solvable`), such as a recurrent one, is pruned and left as it is.
What is measured is the divergence of the outputs from the dense network's, on calibration images that nothing was
fitted to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np

from reflow_tf.data.portions import take_first
from reflow_tf.errors import InputError
from reflow_tf.models.execution import Step, Steps, Stretch, read_steps
from reflow_tf.models.fisher import gather_output_worth
from reflow_tf.models.gram import is_solvable
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.observation import check_batch
from reflow_tf.models.precision import read_wide
from reflow_tf.models.predictions import find_reading
from reflow_tf.models.surgery import write_values
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.divergence import measure_divergence
from reflow_tf.repair.layer_fitting import fit_kernel
from reflow_tf.repair.layer_sums import LayerSums, gather_own_equations
from reflow_tf.repair.least_squares import follow_moments
from reflow_tf.repair.sweep_sums import find_norm
from reflow_tf.sparsity.budget import SensitivityCurve
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.sparsity.plan import PlannedLayer
from reflow_tf.task import Task

SPARSITIES = (0.4, 0.85, 0.97)
"""At which divergence is measured; between them its logarithm is taken to be straight.

MobileNetV2, 750 images: by the curves through 0.4, 0.6, 0.75, 0.85, 0.92 and 0.97, what is shared out by these three
costs 0.2 % more at 50 and 70 % and 0.6 % at 80 %, in half the time; by 0.6, 0.85 and 0.97 up to 2.2 % more.
"""
MOST_FITTED, MOST_JUDGED = 512, 256
"""Inputs that kernels are fitted to, and others that judge; the time is that of judging.

MobileNetV2 at 70 %, 1,100 images to refit, divergence from the dense network on 400 others: 0.757 with 128 and 64,
0.741 with 256 and 256, 0.736 with 512 and 256.
"""
MOST_GROWTH = 1.5
"""What is kept of the judging images is moved on where it gets at most so many times as large.

MobileNetV2 at 224: 0.3 GB of 256 images, where all that layers give in turn is 1.2.
"""


def measure_sensitivity(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    patterns: Mapping[str, Pattern],
    batches: Iterable[np.ndarray],
    progress: Progress,
    task: Task = Task.CLASSIFICATION,
) -> dict[str, SensitivityCurve]:
    """One curve for each kernel; the model is left as it was.

    Args:
        model: a functional or sequential model, dense.
        specs: its kernels.
        patterns: path -> what shape the zeros take.
        batches: float arrays (n, ...), at least 4 inputs: a third judges, the rest is fitted to.
        progress: wraps the layers as they are measured.
        task: what the model's outputs are taken for.

    Raises:
        InputError: the model is subclassed, there are too few inputs, or a layer is none that least squares takes (see
            `fisher.gather_output_worth`).
    """
    steps, kernels = read_steps(model), find_kernels(model)
    solvable = _find_solvable(steps, kernels, specs)
    images = take_first(batches, MOST_FITTED + MOST_JUDGED)
    if len(images) < 4:
        raise InputError(f"--allocation=auto needs at least 4 calibration inputs. Received: {len(images)}")
    check_batch(model, images)
    num_judged = max(1, min(len(images) // 3, MOST_JUDGED))
    worth = gather_output_worth(model, list(solvable.values()), images[:-num_judged], task)
    fitted = images[:-num_judged], progress, "Watching what kernels compute"
    sums = gather_own_equations(model, solvable, *fitted)
    judge = _Judge(steps, images[-num_judged:], model, task)
    chosen = {id(kernels.variables[path]): spec for path, spec in solvable.items()}
    curves = {}
    for left in specs:
        if left.path not in solvable:  # measured now, while everything is still ahead
            curves[left.path] = _measure_masked(kernels.variables[left.path], left, patterns[left.path], judge)
    for step in progress(steps.steps, "Measuring sensitivity layer by layer"):
        for variable in getattr(step.operation, "_trainable_variables", ()):
            spec = chosen.get(id(variable))
            if spec is not None and spec.path not in curves:  # a shared one the first time, when all uses are ahead
                known = patterns[spec.path], sums[spec.path], worth[spec.path]
                curves[spec.path] = _measure_kernel(step, steps, kernels, spec, *known, judge)
        judge.pass_by(step)
    return curves


def _find_solvable(steps: Steps, kernels: KernelMap, specs: Sequence[LayerSpec]) -> dict[str, LayerSpec]:
    """Those that least squares refits, by their paths: of the model's own layers."""
    owners = {id(v): step.operation for step in steps for v in getattr(step.operation, "_trainable_variables", ())}
    of_each = ((spec, owners.get(id(kernels.variables[spec.path]))) for spec in specs)
    return {spec.path: spec for spec, owner in of_each if owner is not None and is_solvable(owner, spec)}


class _Judge:
    """Says how far the model, as it is now, is from what it was at first.

    Steps that are passed by are dense for good: what they give is kept, and no more computed for each answer, at places
    where that is one tensor not much larger than what is kept already.
    """

    def __init__(self, steps: Steps, images: np.ndarray, model: keras.Model, task: Task):
        self._steps, self._waiting, self._passed = steps, list(steps), list[Step]()
        self._ahead: Ledger[None] = Ledger(steps, {steps.input: None})
        self._source, self._known = steps.input, [images]
        self._rest = Stretch(self._waiting, [steps.input], [steps.output])
        (dense,) = self._rest(self._known)
        self._reading = find_reading(model, images.shape[1:], dense.shape, task)
        self._dense = np.array(self._reading(dense))

    def pass_by(self, step: Step) -> None:
        self._waiting.remove(step)
        self._passed.append(step)
        self._ahead.enter(step, None)
        # Between blocks only, since each new stretch has to be traced.
        if not self._waiting or len(self._ahead.values) != 1:
            return
        (tensor,) = self._ahead.values
        move, one = Stretch(self._passed, [self._source], [tensor]), self._known[0][:1]
        if move([one])[0].nbytes <= MOST_GROWTH * one.nbytes:
            self._known = move(self._known)
            self._source, self._passed = tensor, []
            self._rest = Stretch(self._waiting, [tensor], [self._steps.output])

    def __call__(self) -> float:
        (outputs,) = self._rest(self._known)
        return measure_divergence(np.array(self._reading(outputs)), self._dense, self._reading.task)


def _measure_kernel(
    step: Step,
    steps: Steps,
    kernels: KernelMap,
    spec: LayerSpec,
    pattern: Pattern,
    sums: LayerSums,
    worth: np.ndarray,
    judge: _Judge,
) -> SensitivityCurve:
    variable, norm = kernels.variables[spec.path], find_norm(step, steps)
    kernel = spec.to_canonical(np.array(variable)).astype(np.float64)
    problem, (dense_mean, dense_variance) = sums.regularize(kernel), sums.moments.predict(kernel)

    def settle(sparsity: float) -> None:
        fit = fit_kernel(problem, kernel, worth, PlannedLayer(pattern, sparsity))
        write_values(variable, spec.from_canonical(fit.kernel))
        if norm:
            mean, variance = sums.moments.predict(fit.kernel)
            moments = follow_moments(norm, mean - dense_mean, variance, dense_variance)
            write_values(norm.moving_mean, moments[0])
            write_values(norm.moving_variance, moments[1])

    return _try_each([variable, *((norm.moving_mean, norm.moving_variance) if norm else ())], settle, judge)


def _measure_masked(variable: keras.Variable, spec: LayerSpec, pattern: Pattern, judge: _Judge) -> SensitivityCurve:
    """Of a kernel that nothing refits: it is masked, and a batch norm behind it keeps its moments."""
    kernel = spec.to_canonical(read_wide(variable))

    def settle(sparsity: float) -> None:
        mask = pattern.select(np.abs(kernel), sparsity)
        write_values(variable, spec.from_canonical(np.where(mask, kernel, 0)))

    return _try_each([variable], settle, judge)


def _try_each(variables: Sequence[keras.Variable], settle: Callable[[float], None], judge: _Judge) -> SensitivityCurve:
    """The curve, each sparsity settled from what the variables held before; they hold it again afterwards."""
    before = [np.array(v) for v in variables]

    def restore() -> None:
        for v, value in zip(variables, before, strict=True):
            v.assign(value)

    divergences = []
    try:
        for sparsity in SPARSITIES:
            restore()
            settle(sparsity)
            divergences.append(judge())
    finally:
        restore()
    return SensitivityCurve(SPARSITIES, tuple(divergences))
