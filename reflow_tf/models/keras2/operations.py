"""TensorFlow functions that Keras 2 wrote into networks as TFOpLambda and SlicingOpLambda, as operations of Keras 3."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from reflow_tf.models.keras2.objects import read_value
from reflow_tf.models.keras2.refusal import Untranslatable

CLASSES = frozenset({"TFOpLambda", "SlicingOpLambda"})
_UNSAID = {"name": None, "conjugate": False, "training": None}  # arguments that change nothing at these values


@dataclasses.dataclass(frozen=True)
class Operation:
    """One call of an operation of Keras 3.

    Attributes:
        module: where its class is, below keras.src.ops.
        class_name: its class.
        options: what its constructor takes.
        arguments: what it is called with, in order; tensors as Keras 3 writes them.
    """

    module: str
    class_name: str
    options: Mapping[str, Any]
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Counterpart:
    """An operation that computes what a TensorFlow function does.

    Attributes:
        operation: 'module.Class' below keras.src.ops.
        operands: arguments after the first that may be tensors, in order; all are required.
        options: argument of the function -> argument of the operation's constructor.
        defaults: value of an option that the file leaves out, where the two versions do not agree on it.
        implied: other arguments of the function, each with the only value for which the two agree.
    """

    operation: str
    operands: tuple[str, ...] = ()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_REDUCTION = {"axis": "axis", "keepdims": "keepdims"}
_COUNTERPARTS = {
    "__operators__.add": _Counterpart("numpy.Add", ("y",)),
    "math.add": _Counterpart("numpy.Add", ("y",)),
    "math.subtract": _Counterpart("numpy.Subtract", ("y",)),
    "math.multiply": _Counterpart("numpy.Multiply", ("y",)),
    "math.truediv": _Counterpart("numpy.TrueDivide", ("y",)),
    "math.divide": _Counterpart("numpy.TrueDivide", ("y",)),
    "math.maximum": _Counterpart("numpy.Maximum", ("y",)),
    "math.minimum": _Counterpart("numpy.Minimum", ("y",)),
    "math.pow": _Counterpart("numpy.Power", ("y",)),
    "linalg.matmul": _Counterpart("numpy.Matmul", ("b",), implied={"transpose_a": False, "transpose_b": False}),
    "math.negative": _Counterpart("numpy.Negative"),
    "math.abs": _Counterpart("numpy.Absolute"),
    "math.exp": _Counterpart("numpy.Exp"),
    "math.log": _Counterpart("numpy.Log"),
    "math.sqrt": _Counterpart("numpy.Sqrt"),
    "math.rsqrt": _Counterpart("math.Rsqrt"),
    "math.square": _Counterpart("numpy.Square"),
    "math.tanh": _Counterpart("numpy.Tanh"),
    "math.sigmoid": _Counterpart("nn.Sigmoid"),
    "nn.relu": _Counterpart("nn.Relu"),
    "nn.relu6": _Counterpart("nn.Relu6"),
    "nn.silu": _Counterpart("nn.Silu", implied={"beta": 1.0}),
    "nn.elu": _Counterpart("nn.Elu"),
    "nn.selu": _Counterpart("nn.Selu"),
    "math.softplus": _Counterpart("nn.Softplus"),
    "nn.leaky_relu": _Counterpart("nn.LeakyRelu", options={"alpha": "negative_slope"}, defaults={"alpha": 0.2}),
    "nn.gelu": _Counterpart("nn.Gelu", options={"approximate": "approximate"}, defaults={"approximate": False}),
    "nn.softmax": _Counterpart("nn.Softmax", options={"axis": "axis"}),
    "math.reduce_mean": _Counterpart("numpy.Mean", options=_REDUCTION),
    "math.reduce_sum": _Counterpart("numpy.Sum", options=_REDUCTION),
    "math.reduce_max": _Counterpart("numpy.Max", options=_REDUCTION),
    "math.reduce_min": _Counterpart("numpy.Min", options=_REDUCTION),
    "reshape": _Counterpart("numpy.Reshape", options={"shape": "newshape"}),
    "transpose": _Counterpart("numpy.Transpose", options={"perm": "axes"}),
    "expand_dims": _Counterpart("numpy.ExpandDims", options={"axis": "axis"}),
    "squeeze": _Counterpart("numpy.Squeeze", options={"axis": "axis"}),
    "concat": _Counterpart("numpy.Concatenate", options={"axis": "axis"}),
    "stack": _Counterpart("numpy.Stack", options={"axis": "axis"}),
    "tile": _Counterpart("numpy.Tile", options={"multiples": "repeats"}),
    "pad": _Counterpart(
        "numpy.Pad", options={"paddings": "pad_width"}, implied={"mode": "CONSTANT", "constant_values": 0}
    ),
    "clip_by_value": _Counterpart("numpy.Clip", options={"clip_value_min": "x_min", "clip_value_max": "x_max"}),
    "cast": _Counterpart("core.Cast", options={"dtype": "dtype"}),
}
_NEEDED = frozenset({"shape", "multiples", "paddings", "clip_value_min", "clip_value_max", "dtype"})


def translate_operation(config: Mapping[str, Any], first: Any, others: Mapping[str, Any], name: str) -> Operation:
    """The operation of Keras 3 that does what the TensorFlow function in a layer's configuration does.

    Args:
        config: of the layer, with 'function', such as 'math.multiply', and 'dtype'.
        first: the first argument of the call: a tensor as Keras 3 writes it, a list of them, or a constant.
        others: the other arguments of the call, by name, tensors as Keras 3 writes them.
        name: of the layer, for messages.

    Raises:
        Untranslatable: no such operation, or not with these arguments.
    """
    function = str(config.get("function")).removeprefix("compat.v1.")
    others = {key: value for key, value in others.items() if key not in _UNSAID or value != _UNSAID[key]}
    others.pop("name", None)  # of the node in TensorFlow's graph
    if function == "__operators__.getitem":
        key = _translate_key(others.pop("slice_spec", None), name)
        _refuse_rest(others, function, name)
        return Operation("numpy", "GetItem", {}, (first, key))
    counterpart = _COUNTERPARTS.get(function)
    if counterpart is None:
        raise Untranslatable(name, f"has the TensorFlow function {function}, which this tool does not translate")
    for argument, value in counterpart.implied.items():
        if others.pop(argument, value) != value:
            raise Untranslatable(name, f"has the TensorFlow function {function} with another {argument} than {value}")
    options = dict(counterpart.defaults)
    options |= {key: read_value(others.pop(key), name) for key in counterpart.options if key in others}
    missing = [key for key in (*counterpart.operands, *counterpart.options) if key in _NEEDED and key not in options]
    operands = [others.pop(key) for key in counterpart.operands if key in others]
    if missing or len(operands) != len(counterpart.operands):
        raise Untranslatable(name, f"has the TensorFlow function {function} without all of its arguments")
    _refuse_rest(others, function, name)
    module, _, class_name = counterpart.operation.partition(".")
    arguments = tuple(_translate_constant(value, config, name) for value in (first, *operands))
    renamed = {counterpart.options[key]: value for key, value in options.items()}
    return Operation(module, class_name, renamed, arguments)


def _refuse_rest(others: Mapping[str, Any], function: str, name: str) -> None:
    if others:
        given = ", ".join(f"{key}={value!r}"[:60] for key, value in others.items())
        raise Untranslatable(name, f"has the TensorFlow function {function} with {given}")


def _translate_constant(value: Any, config: Mapping[str, Any], name: str) -> Any:
    """A constant list of numbers as an array; tensors and single numbers as they are."""
    if not isinstance(value, list) or not _is_numeric(value):
        return value
    if config.get("dtype", "float32") != "float32":
        raise Untranslatable(name, "has a constant array in another dtype than float32")
    return {"class_name": "__numpy__", "config": {"value": value, "dtype": "float32"}}


def _is_numeric(value: Any) -> bool:
    return all(_is_numeric(item) for item in value) if isinstance(value, list) else isinstance(value, int | float)


def _translate_key(saved: Any, name: str) -> list[Any]:
    """What stands in brackets after a tensor: indices, slices, '...' and None."""
    if isinstance(saved, dict) and saved.get("class_name") == "__tuple__":
        saved = saved.get("items")
    return [_translate_index(item, name) for item in (saved if isinstance(saved, list) else [saved])]


def _translate_index(saved: Any, name: str) -> Any:
    if saved is None or isinstance(saved, int):
        return saved
    if isinstance(saved, dict) and saved.get("class_name") in ("__ellipsis__", "Ellipsis"):
        return {"class_name": "__ellipsis__", "config": {}}
    if isinstance(saved, dict) and saved.get("class_name") == "__slice__":
        saved = saved.get("config")
    if isinstance(saved, dict) and set(saved) == {"start", "stop", "step"}:
        bounds = list(saved.values())
        if all(bound is None or isinstance(bound, int) for bound in bounds):
            return {"class_name": "__slice__", "config": dict(saved)}
    raise Untranslatable(name, f"has an index that is no number, slice or '...': {str(saved)[:80]}")
