"""Keras 2's words for what is no layer: activations, initializers, regularizers, constraints, dtypes, plain values."""

import inspect
from typing import Any

import keras

from reflow_tf.models.keras2.refusal import Untranslatable

# The activations that both versions compute alike. 'hard_sigmoid' is not among them: max(0, min(1, x / 5 + 1/2)) in
# Keras 2, x / 6 in Keras 3. Source: tf_keras.src.activations, keras.src.activations.
_SHARED = """
elu exponential gelu leaky_relu linear log_softmax mish relu relu6 selu sigmoid silu softmax softplus softsign swish
tanh
"""
_ACTIVATIONS = frozenset(_SHARED.split())
_PLAIN = (bool, int, float, str, type(None))
# Arguments of initializers that only Keras 2 has; they say where or how a value is drawn, not which.
_DROPPED_OF_INITIALIZERS = ("dtype", "partitioner", "layout")


def translate_activation(saved: Any, layer: str, argument: str) -> Any:
    """The name of an activation that Keras 2 and 3 compute alike, or a registered function."""
    name = saved
    if isinstance(saved, dict):
        inner = saved.get("config")
        if saved.get("class_name") == "function" and isinstance(inner, str):
            name = inner
        elif saved.get("module") in ("keras.activations", "builtins") or isinstance(inner, str):
            name = saved.get("class_name")
        else:
            raise Untranslatable(layer, f"has {argument}={saved.get('class_name')}, a layer of its own")
    if name is None:
        return "linear"
    if isinstance(name, str) and (name in _ACTIVATIONS or keras.saving.get_registered_object(name) is not None):
        return name
    if name == "hard_sigmoid":
        raise Untranslatable(
            layer, f"has {argument}='hard_sigmoid', another function in Keras 3 (x/6 where it was x/5)"
        )
    raise Untranslatable(layer, f"has {argument}={name!r}, which is none that Keras 2 and 3 share")


def translate_initializer(saved: Any, layer: str, argument: str) -> Any:
    """An initializer. The weights come from the file, so it only says what they once were."""
    if not isinstance(saved, dict):
        return saved
    name = str(saved.get("class_name"))
    if keras.saving.get_registered_object(str(saved.get("registered_name") or name)) is not None:
        return saved
    for version in ("V1", "V2"):
        name = name.removesuffix(version)
    found = getattr(keras.initializers, name, None)
    config = saved.get("config")
    if not inspect.isclass(found) or not isinstance(config, dict):
        raise Untranslatable(layer, f"has {argument}={name}, which Keras 3 does not know")
    config = {key: read_value(value, layer) for key, value in config.items() if key not in _DROPPED_OF_INITIALIZERS}
    return _wrap("keras.initializers", name, config)


def translate_regularizer(saved: Any, layer: str, argument: str) -> Any:
    """A weight or activity regularizer."""
    return _translate_object(saved, layer, argument, "keras.regularizers", keras.regularizers)


def translate_constraint(saved: Any, layer: str, argument: str) -> Any:
    """A constraint of a weight."""
    return _translate_object(saved, layer, argument, "keras.constraints", keras.constraints)


def translate_dtype(saved: Any, layer: str, argument: str) -> str | None:
    """The name of a dtype or of a policy; None where the file leaves it open."""
    if isinstance(saved, dict):
        config = saved.get("config")
        saved = config.get("name") if isinstance(config, dict) else config
    if saved is None:
        return None
    try:
        return keras.dtype_policies.get(saved).name
    except (ValueError, TypeError) as error:
        raise Untranslatable(layer, f"has {argument}={saved!r}, which Keras 3 does not know") from error


def read_value(saved: Any, layer: str) -> Any:
    """A plain value: a number, a text, None, or lists of them, however that version of Keras wrote arrays."""
    if isinstance(saved, _PLAIN):
        return saved
    if isinstance(saved, list):
        return [read_value(item, layer) for item in saved]
    if isinstance(saved, dict):
        if saved.get("class_name") in ("__tuple__", "TensorShape"):
            return read_value(saved.get("items"), layer)
        if saved.get("class_name") in ("__numpy__", "__tensor__") and isinstance(saved.get("config"), dict):
            return read_value(saved["config"].get("value"), layer)
        if saved.get("type") == "ndarray":
            return read_value(saved.get("value"), layer)
    raise Untranslatable(layer, f"has a value that is neither number, text nor list: {str(saved)[:80]}")


def _translate_object(saved: Any, layer: str, argument: str, module: str, found_in: Any) -> Any:
    if saved is None or isinstance(saved, str):
        return saved
    if isinstance(saved, dict):
        name = str(saved.get("class_name"))
        if keras.saving.get_registered_object(str(saved.get("registered_name") or name)) is not None:
            return saved
        config = saved.get("config")
        if inspect.isclass(getattr(found_in, name, None)) and isinstance(config, dict):
            return _wrap(module, name, {key: read_value(value, layer) for key, value in config.items()})
    raise Untranslatable(layer, f"has {argument}={str(saved)[:80]}, which is none of {module}")


def _wrap(module: str, class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}
