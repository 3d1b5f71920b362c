"""What each argument of a Keras 2 layer is in Keras 3: the same, another word, nothing, or a reason to refuse."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from reflow_tf.models.keras2.objects import (
    read_value,
    translate_activation,
    translate_constraint,
    translate_dtype,
    translate_initializer,
    translate_regularizer,
)
from reflow_tf.models.keras2.refusal import Untranslatable

_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_SPATIAL_DROPOUT = ("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")

# Layers that mean in Keras 3 what they meant in Keras 2; every other one is refused by name.
_SHARED = """
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D AveragePooling2D
AveragePooling3D BatchNormalization Bidirectional CenterCrop Concatenate Conv1D Conv2D Conv3D Cropping1D Cropping2D
Cropping3D Dense Dot Dropout ELU EinsumDense Embedding Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D
GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
GroupNormalization Identity LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
MultiHeadAttention Multiply Normalization PReLU Permute RandomContrast RandomFlip RandomRotation RandomTranslation
RandomZoom ReLU RepeatVector Rescaling Reshape Resizing Softmax Subtract TimeDistributed UnitNormalization UpSampling1D
UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
LAYERS = frozenset(_SHARED.split()).union(_RECURRENT, _CELLS, _TRANSPOSED, _DEPTHWISE, _SEPARABLE, _SPATIAL_DROPOUT)

# Other names that Keras 2 gave to the same layer.
SYNONYMS = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "ThresholdedReLU": "ReLU",
}
_RENAMED = {("LeakyReLU", "alpha"): "negative_slope", ("ReLU", "theta"): "threshold"}


class _Anything:
    """Contains every value: the argument says nothing about what the layer computes from its weights."""

    def __contains__(self, value: object) -> bool:
        return True


_ANY = _Anything()
# A kernel that these layers never have: their weights are a depthwise and a pointwise one.
_NO_KERNEL: dict[str, Any] = {"kernel_initializer": _ANY, "kernel_regularizer": _ANY, "kernel_constraint": _ANY}
_NO_FILTERS: dict[str, Any] = {"filters": (None,)}
_NO_GROUPS: dict[str, Any] = {"groups": (1, None)}
_NO_NOISE_SHAPE: dict[str, Any] = {"noise_shape": (None,), "trainable": _ANY}  # nothing in them could be trained
_HOW_TO_REPEAT: dict[str, Any] = {"implementation": _ANY, "time_major": (False,), "num_constants": (None,)}
# For each layer, the arguments that Keras 3 lacks, with the values for which leaving them out changes nothing.
_DROPPED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_TRANSPOSED, _NO_GROUPS),
    **dict.fromkeys(_DEPTHWISE, _NO_GROUPS | _NO_KERNEL | _NO_FILTERS),
    **dict.fromkeys(_SEPARABLE, _NO_GROUPS | _NO_KERNEL),
    **dict.fromkeys(_RECURRENT, _HOW_TO_REPEAT),
    **dict.fromkeys(_CELLS, _HOW_TO_REPEAT),
    **dict.fromkeys(_SPATIAL_DROPOUT, _NO_NOISE_SHAPE),
    "BatchNormalization": {
        "fused": _ANY,  # how, not what
        "renorm": (False, None),
        "renorm_clipping": _ANY,  # says nothing where renorm is off
        "renorm_momentum": _ANY,
        "virtual_batch_size": (None,),
        "adjustment": (None,),
    },
    "MultiHeadAttention": {
        "query_shape": _ANY,  # the shapes that it was built for: the network says them too
        "key_shape": _ANY,
        "value_shape": _ANY,
        "softmax_robust_masking": (False,),
    },
    "Softmax": {"robust_masking": (False,)},
    "Embedding": {"input_length": _ANY},  # the length of the sequences: the network's input says it too
    "Attention": {"causal": (False,)},
    "AdditiveAttention": {"causal": (False,)},
    "Bidirectional": {"num_constants": (None,)},
}
_DROPPED_OF_ALL: dict[str, Any] = {"dynamic": (False,), "rng_type": _ANY, "batch_input_shape": _ANY}
# Where Keras 3 has the argument, and these values would mean something else, or nothing that a file can hold.
_REFUSED: dict[str, tuple[Any, ...]] = {"stateful": (True,), "ragged": (True,), "sparse": (True,)}

_VALUES: tuple[tuple[str, Callable[[Any, str, str], Any]], ...] = (
    ("activation", translate_activation),
    ("initializer", translate_initializer),
    ("regularizer", translate_regularizer),
    ("constraint", translate_constraint),
    ("dtype", translate_dtype),
)


def translate_arguments(
    class_name: str, saved: Mapping[str, Any], layer: str, inner: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of one layer of Keras 3.

    Args:
        class_name: the layer's class in Keras 3, one of `LAYERS`.
        saved: its 'config' in the file.
        layer: its name in the file, for messages.
        inner: what became of the layers among its arguments, by argument.

    Raises:
        Untranslatable: an argument, or a value of it, that Keras 3 has no equal for.
    """
    known = _list_arguments(class_name)
    dropped = _DROPPED_OF_ALL | _DROPPED.get(class_name, {})
    translated = dict(inner)
    for name, value in saved.items():
        if name in inner:
            continue
        if name in dropped:
            if value not in dropped[name]:
                raise Untranslatable(layer, f"({class_name}) has {name}={_show(value)}, which Keras 3 does not know")
            continue
        name = _RENAMED.get((class_name, name), name)
        if name not in known:
            raise Untranslatable(layer, f"({class_name}) has {name}={_show(value)}, which Keras 3 does not know")
        value = _translate_value(name, value, layer)
        if value in _REFUSED.get(name, ()):
            raise Untranslatable(layer, f"({class_name}) has {name}={_show(value)}, which this tool does not translate")
        if name != "dtype" or value is not None:
            translated[name] = value
    axis = translated.get("axis")
    if class_name == "BatchNormalization" and isinstance(axis, list):
        if len(axis) != 1:
            raise Untranslatable(layer, f"({class_name}) has axis={axis}; Keras 3 takes one axis")
        translated["axis"] = axis[0]
    return translated


def _list_arguments(class_name: str) -> set[str]:
    """The arguments that a layer of Keras 3 takes by name."""
    names = set()
    for ancestor in getattr(keras.layers, class_name).__mro__:
        if ancestor is keras.Layer:
            break
        if "__init__" in vars(ancestor):
            parameters = inspect.signature(ancestor.__init__).parameters.values()
            names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return names - {"self"}  # it hands nothing on to its ancestors
    return names - {"self"} | {"name", "trainable", "dtype", "activity_regularizer"}


def _translate_value(name: str, value: Any, layer: str) -> Any:
    for ending, translate in _VALUES:
        if name.endswith(ending):
            return translate(value, layer, name)
    return read_value(value, layer)


def _show(value: Any) -> str:
    return repr(value)[:60]
