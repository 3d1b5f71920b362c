"""Writing into a model: masked weights, and the copy that is written to."""

import copy

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.graph import KernelMap
from reflow_tf.sparsity.masks import Masks


def copy_model(model: keras.Model) -> keras.Model:
    """An independent model of the same architecture whose variables are bit-identical.

    Raises:
        InputError: the model cannot be rebuilt from its configuration (a subclassed model without a full `get_config`).
    """
    remedy = "give the class a complete get_config(), or work on the model itself with inplace=True"
    try:
        # Keras saves to memory and loads back: the one way that serves functional, nested and subclassed models.
        duplicate = copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"The model must be rebuildable from its configuration to be copied; {remedy}. "
            f"Received: {type(model).__name__} ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if read_variables(duplicate) != read_variables(model):
        raise InputError(
            f"The model's copy must have the same variables; {remedy}. "
            f"Received: {type(model).__name__}, whose weights do not survive saving and loading"
        )
    return duplicate


def read_variables(model: keras.Model, without: frozenset[int] = frozenset()) -> tuple[bytes, ...]:
    """The bits of every variable, in the model's order, to assert that nothing moved.

    Args:
        model: a built model.
        without: `id` of variables to leave out.
    """
    return tuple(
        keras.ops.convert_to_numpy(variable).tobytes() for variable in model.variables if id(variable) not in without
    )


def write_masks(kernels: KernelMap, masks: Masks) -> None:
    """Zeroes the masked weights in place; every kept weight stays bit-identical.

    Args:
        kernels: of the model that is written to.
        masks: path -> boolean mask in canonical layout.
    """
    for spec in kernels.specs:
        if spec.path in masks:
            variable = kernels.variables[spec.path]
            kernel = keras.ops.convert_to_numpy(variable)
            # A product would leave -0.0 where a negative weight was.
            variable.assign(np.where(spec.from_canonical(masks[spec.path]), kernel, np.zeros_like(kernel)))
