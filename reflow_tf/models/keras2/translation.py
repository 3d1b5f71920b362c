"""A model's configuration as Keras 2 saved it -> the configuration that Keras 3 reads, layer by layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from reflow_tf.models.keras2.arguments import LAYERS, SYNONYMS, translate_arguments
from reflow_tf.models.keras2.graph import Call, References, read_call, read_references
from reflow_tf.models.keras2.objects import read_value, translate_dtype
from reflow_tf.models.keras2.operations import CLASSES as OPERATIONS
from reflow_tf.models.keras2.operations import translate_operation
from reflow_tf.models.keras2.pruning_wrappers import WRAPPER, take_off
from reflow_tf.models.keras2.refusal import Untranslatable

_FUNCTIONAL = ("Functional", "Model")
_WRAPPED = ("layer", "backward_layer", "cell", "cells")  # arguments that are layers themselves
_TAKE_STATES = frozenset({"LSTM", "GRU", "SimpleRNN", "Bidirectional"})


@dataclasses.dataclass(frozen=True)
class SavedLayer:
    """A layer as the file knows it, for whoever reads its weights.

    Attributes:
        saved_name: in the file.
        name: in Keras 3, where names hold no '/'.
        class_name: in the file.
        is_trainable: False where the layer was frozen: Keras 2 then stores its weights among those that no training
            moves.
        layers: of a nested model, in the order of the file; of a layer around another one, that one. Neither inputs nor
            operations.
        is_model: whether it is a model.
        wrapper: the name in the file of what prunes it, `pruning_wrappers.CLASS_NAME`; None where nothing does.
    """

    saved_name: str
    name: str
    class_name: str
    is_trainable: bool = True
    layers: tuple["SavedLayer", ...] = ()
    is_model: bool = False
    wrapper: str | None = None


@dataclasses.dataclass(frozen=True)
class Translation:
    """One layer or model.

    Attributes:
        config: what `keras.saving.deserialize_keras_object` makes the layer of.
        saved: the layer as the file knows it.
    """

    config: dict[str, Any]
    saved: SavedLayer


def translate_model(entry: Mapping[str, Any]) -> Translation:
    """Translates a whole model.

    Args:
        entry: its 'class_name' and 'config'.

    Raises:
        Untranslatable: something in it has no equal in Keras 3.
        KeyError, TypeError, ValueError, AttributeError, IndexError: it is no configuration of a model.
    """
    if entry.get("class_name") not in (*_FUNCTIONAL, "Sequential"):
        name = str(entry.get("class_name"))
        raise Untranslatable(
            name, "is a model in Python code; only functional and sequential models are in the file whole"
        )
    return _translate_layer(take_off(entry))


def _translate_layer(entry: Mapping[str, Any]) -> Translation:
    class_name = str(entry["class_name"])
    if class_name in _FUNCTIONAL:
        return _translate_functional(entry)
    if class_name == "Sequential":
        return _translate_sequential(entry)
    config = entry["config"]
    name = str(entry.get("name") or config["name"])
    if class_name == "InputLayer":
        return _translate_input(config, name)
    saved = SavedLayer(name, _rename(name), class_name, config.get("trainable", True) is not False)
    registered = keras.saving.get_registered_object(str(entry.get("registered_name") or class_name))
    if registered is not None:
        kept = {key: value for key, value in config.items() if key != "batch_input_shape"}
        dtype = {"dtype": translate_dtype(config["dtype"], name, "dtype")} if config.get("dtype") else {}
        return Translation({**entry, "config": kept | dtype | {"name": saved.name}, "build_config": None}, saved)
    known = SYNONYMS.get(class_name, class_name)
    if class_name == "Lambda":
        raise Untranslatable(name, "is a Lambda: Python code, which loading would run and this tool never does")
    if known not in LAYERS:
        raise Untranslatable(name, f"is a {class_name}, which is none of the layers that Keras 2 and 3 share")
    inner, layers = _translate_wrapped(config)
    arguments = translate_arguments(known, config, name, inner) | {"name": saved.name}
    return Translation(_wrap("keras.layers", known, arguments), dataclasses.replace(saved, layers=layers))


def _translate_wrapped(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[SavedLayer, ...]]:
    """The layers among a layer's arguments: argument -> configuration, and the same as the file knows them."""
    inner: dict[str, Any] = {}
    layers: list[SavedLayer] = []
    for argument in _WRAPPED:
        if isinstance(config.get(argument), dict):
            translation = _translate_layer(config[argument])
            inner[argument] = translation.config
            layers.append(translation.saved)
        elif isinstance(config.get(argument), list):
            translations = [_translate_layer(item) for item in config[argument]]
            inner[argument] = [translation.config for translation in translations]
            layers += [translation.saved for translation in translations]
    return inner, tuple(layers)


def _translate_input(config: Mapping[str, Any], name: str) -> Translation:
    for kind in ("sparse", "ragged"):
        if config.get(kind):
            raise Untranslatable(name, f"(InputLayer) has {kind}=True, which this tool does not translate")
    shape = read_value(config.get("batch_input_shape", config.get("batch_shape")), name)
    arguments = {
        "batch_shape": shape,
        "dtype": translate_dtype(config.get("dtype"), name, "dtype"),
        "name": _rename(name),
    }
    return Translation(_wrap("keras.layers", "InputLayer", arguments), SavedLayer(name, _rename(name), "InputLayer"))


def _translate_functional(entry: Mapping[str, Any]) -> Translation:
    config = entry["config"]
    entries = config["layers"]
    name = str(config["name"])
    names = _rename_all([layer["name"] for layer in entries])
    nested = frozenset(layer["name"] for layer in entries if layer["class_name"] in (*_FUNCTIONAL, "Sequential"))
    references = read_references(names, nested, config)
    layers, saved = [], []
    for layer in entries:
        if layer["class_name"] in OPERATIONS:
            layers.append(_translate_operation_layer(layer, references))
            continue
        translation = _translate_layer(layer)
        new_name = names[layer["name"]]
        translation.config["config"]["name"] = new_name
        nodes = [_translate_node(node, references, layer) for node in layer.get("inbound_nodes", [])]
        layers.append({**translation.config, "name": new_name, "inbound_nodes": nodes})
        named = {"saved_name": layer["name"], "name": new_name, "wrapper": layer.get(WRAPPER)}
        saved.append(dataclasses.replace(translation.saved, **named))
    sequential = frozenset(layer["name"] for layer in entries if layer["class_name"] == "Sequential")
    ends = {end: _translate_end(config[end], references, sequential, name) for end in ("input_layers", "output_layers")}
    functional = {"name": _rename(name), "trainable": config.get("trainable", True), "layers": layers, **ends}
    whole = _wrap("keras.src.models.functional", "Functional", functional) | {"registered_name": "Functional"}
    return Translation(
        whole, SavedLayer(name, _rename(name), entry["class_name"], layers=_keep_layers(saved), is_model=True)
    )


def _translate_node(node: Any, references: References, layer: Mapping[str, Any]) -> dict[str, Any]:
    """One call of a layer."""
    if isinstance(node, dict) and "args" in node and "kwargs" in node:
        return node  # written as Keras 3 writes it
    name, class_name = layer["name"], layer["class_name"]
    call = read_call(node, references, name)
    others = {key: value for key, value in call.others.items() if value is not None}
    first = call.first
    if class_name in _TAKE_STATES and isinstance(first, list):  # Keras 2 handed states over behind the sequence
        first, *states = first
        others["initial_state"] = states
    return {"args": [first], "kwargs": others}


def _translate_operation_layer(layer: Mapping[str, Any], references: References) -> dict[str, Any]:
    """A layer that is one TensorFlow function, called once or more often."""
    name = layer["name"]
    calls: list[Call] = [read_call(node, references, name) for node in layer["inbound_nodes"]]
    operations = [translate_operation(layer["config"], call.first, call.others, name) for call in calls]
    first = operations[0]
    if any((other.class_name, other.options) != (first.class_name, first.options) for other in operations):
        raise Untranslatable(name, "is a TensorFlow function that is called with several sets of arguments")
    config = {"name": references.names[name], **first.options}
    whole = _wrap(f"keras.src.ops.{first.module}", first.class_name, config) | {"registered_name": first.class_name}
    nodes = [{"args": list(operation.arguments), "kwargs": {}} for operation in operations]
    return {**whole, "name": references.names[name], "inbound_nodes": nodes}


def _translate_end(saved: Any, references: References, sequential: frozenset[str], model: str) -> Any:
    """The inputs or outputs of a network; of a single one no list, so that the model gives a tensor."""
    if isinstance(saved, list) and len(saved) == 1:
        return _translate_end(saved[0], references, sequential, model)
    if isinstance(saved, list) and len(saved) == 3 and isinstance(saved[0], str):
        name, call, output = references.history(saved, model)
        # Of a functional model in a network, Keras 3 counts from 1 here, and only here.
        return [name, call + 1 if saved[0] in references.nested - sequential else call, output]
    if isinstance(saved, dict):
        return {key: _translate_end(item, references, sequential, model) for key, item in saved.items()}
    return [_translate_end(item, references, sequential, model) for item in saved]


def _translate_sequential(entry: Mapping[str, Any]) -> Translation:
    config = entry["config"]
    if isinstance(config, list):  # Keras before 2.2.3
        config = {"name": entry.get("name", "sequential"), "layers": config}
    entries = config["layers"]
    name = str(config["name"])
    shape = config.get("build_input_shape") or (entry.get("build_config") or {}).get("input_shape")
    translations = [_translate_layer(layer) for layer in entries]
    names = _rename_all([translation.saved.saved_name for translation in translations])
    for translation in translations:
        translation.config["config"]["name"] = names[translation.saved.saved_name]
    layers = [translation.config for translation in translations]
    saved = [
        dataclasses.replace(each.saved, name=names[each.saved.saved_name], wrapper=layer.get(WRAPPER))
        for layer, each in zip(entries, translations, strict=True)
    ]
    if entries and entries[0]["class_name"] != "InputLayer":
        found = _find_input(entries[0]) or ({"batch_input_shape": shape} if shape else None)
        if found is not None:
            new_name = _make_unique(f"{saved[0].name}_input", set(names.values()))
            layers.insert(0, _translate_input({**found, "name": new_name}, new_name).config)
    whole = _wrap("keras", "Sequential", {"name": _rename(name), "layers": layers})
    return Translation(whole, SavedLayer(name, _rename(name), "Sequential", layers=_keep_layers(saved), is_model=True))


def _find_input(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Shape and dtype of what the first layer of a sequential model takes; None where it does not say."""
    config = entry["config"]
    if entry["class_name"] in _FUNCTIONAL:
        (first,) = [layer["config"] for layer in config["layers"] if layer["class_name"] == "InputLayer"]
        config = first
    elif entry["class_name"] == "Sequential":
        layers = config if isinstance(config, list) else config["layers"]
        return _find_input(layers[0])
    shape = config.get("batch_input_shape", config.get("batch_shape"))
    if shape is None:
        return None
    dtype = config.get("dtype") if entry["class_name"] != "Embedding" else "float32"
    return {
        "batch_input_shape": shape,
        "dtype": dtype if isinstance(dtype, str) and "mixed" not in dtype else "float32",
    }


def _keep_layers(saved: list[SavedLayer]) -> tuple[SavedLayer, ...]:
    return tuple(layer for layer in saved if layer.class_name != "InputLayer")


def _rename(name: str) -> str:
    """A name without '/', which Keras 3 does not allow in it."""
    return name.replace("/", "_")


def _rename_all(names: list[str]) -> dict[str, str]:
    """Name in the file -> a name for Keras 3, each of them once."""
    renamed: dict[str, str] = {}
    for name in sorted(names, key=lambda name: "/" in name):  # who can keep a name keeps it
        if name in renamed:
            raise Untranslatable(name, "is there twice in one model")
        renamed[name] = _make_unique(_rename(name), set(renamed.values()))
    return renamed


def _make_unique(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _wrap(module: str, class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}
