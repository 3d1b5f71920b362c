"""Writing into a model: masked weights, and the copy that is written to."""

import contextlib
import copy
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.graph import KernelMap
from reflow_tf.models.precision import built_with
from reflow_tf.models.walking import walk
from reflow_tf.sparsity.masks import Masks


def copy_model(model: keras.Model) -> keras.Model:
    """An independent model of the same architecture whose weights are bit-identical.

    Raises:
        InputError: the model cannot be rebuilt from its configuration (a subclassed model without a full `get_config`).
    """
    remedy = "give the class a complete get_config(), or work on the model itself with inplace=True"
    try:
        # Keras saves to memory and loads back: the one way that serves functional, nested and subclassed models.
        with keras.saving.custom_object_scope(own_classes(model)), built_with(model.dtype_policy):
            duplicate = copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"The model must be rebuildable from its configuration to be copied; {remedy}. "
            f"Received: {type(model).__name__} ({say_why(error)})"
        ) from error
    # Not `variables`: those also count the states of random seeds, which Keras does not save.
    if read_bits(duplicate.weights) != read_bits(model.weights):
        raise InputError(
            f"The model's copy must have the same weights; {remedy}. "
            f"Received: {type(model).__name__}, whose weights do not survive saving and loading"
        )
    return duplicate


def own_classes(model: keras.Model) -> dict[str, type]:
    """The user's classes in the model: Keras looks classes up by name, and of these none can be in doubt."""
    types = {type(layer) for layer in (model, *(placed.layer for placed in walk(model)))}
    # Keras's own are found without help, and some of them share a name (the layer Add, the operation Add).
    return {kind.__name__: kind for kind in types if kind.__module__.partition(".")[0] != "keras"}


def read_bits(variables: Iterable[keras.Variable]) -> tuple[bytes, ...]:
    """The bits of each variable, to assert that nothing moved."""
    return tuple(keras.ops.convert_to_numpy(variable).tobytes() for variable in variables)


def write_values(variable: keras.Variable, values: np.ndarray) -> None:
    """Writes finite values of any floating dtype, rounded to the variable's; zeros stay zero.

    Raises:
        InputError: a value is not finite, or too large for the dtype; the variable is as it was.
    """
    if not np.isfinite(values).all():
        layer, _, name = variable.path.rpartition("/")
        raise InputError(
            f"What is computed for the variable {name} of layer {layer} must be finite: its inputs have to vary, or "
            "its epsilon be more than 0. Received: NaN or infinity"
        )
    with np.errstate(over="ignore"):
        rounded = values.astype(keras.ops.convert_to_numpy(variable).dtype)
    if not np.isfinite(rounded).all():
        layer, _, name = variable.path.rpartition("/")
        raise InputError(
            f"The {variable.dtype} variable {name} of layer {layer} cannot hold what was computed for it: build the "
            "model with float32 variables, with the dtype policy float32 or a mixed one, and load the weights into it. "
            f"Received: {np.abs(values).max():.3g}"
        )
    variable.assign(rounded)


@contextlib.contextmanager
def restored_on_error(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Whatever ends the block but its end, Ctrl-C included, leaves the variables as they were before it."""
    before = [(variable, np.array(keras.ops.convert_to_numpy(variable))) for variable in variables]
    try:
        yield
    except BaseException:
        for variable, values in before:
            variable.assign(values)
        raise


@contextlib.contextmanager
def without_zero_biases(model: keras.Model) -> Iterator[None]:
    """For the time of the block, biases that are all zero are numbers of their own.

    A converter leaves zeros out, or stores them once for all layers, and a repair fills them.
    """
    biases = [getattr(placed.layer, "bias", None) for placed in walk(model)]
    empty = [bias for bias in biases if isinstance(bias, keras.Variable) and not np.any(bias)]
    rng = np.random.default_rng(0)
    for bias in empty:
        bias.assign(rng.uniform(0.1, 0.2, bias.shape))
    try:
        yield
    finally:
        for bias in empty:
            bias.assign(np.zeros(bias.shape))


def write_masks(kernels: KernelMap, masks: Masks) -> bool:
    """Zeroes the masked weights in place; every kept weight stays bit-identical.

    Args:
        kernels: of the model that is written to.
        masks: path -> boolean mask in canonical layout.

    Returns:
        Whether any of those weights was not zero already.
    """
    removed = False
    for spec in kernels.specs:
        if spec.path in masks:
            variable = kernels.variables[spec.path]
            kernel, kept = keras.ops.convert_to_numpy(variable), spec.from_canonical(masks[spec.path])
            removed = removed or bool(np.any(kernel[~kept]))
            # A product would leave -0.0 where a negative weight was.
            variable.assign(np.where(kept, kernel, np.zeros_like(kernel)))
    return removed
