"""TensorFlow Model Optimization's wrappers around layers that it trains sparse: taken off, and their masks kept.

A `PruneLowMagnitude` holds the layer, a mask and a threshold for each weight that it prunes, and how often it was
called. While it trains it multiplies weights by masks, and so does this. What `strip_pruning` gives has no wrappers any
more. Source: tensorflow_model_optimization/python/core/sparsity/keras/pruning_wrapper.py, 0.8.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.models.keras2.graph import find_leaves
from reflow_tf.models.keras2.refusal import Untranslatable

CLASS_NAME = "PruneLowMagnitude"
WRAPPER = "wrapper"
"""Under this key, the configuration of a layer that was in a wrapper has the wrapper's name."""
_PREFIX = "prune_low_magnitude_"
_OWN = re.compile(r"/(mask|threshold|pruning_step)(?:_\d+)?(?::\d+)?$")


def take_off(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model without wrappers: where one was, its layer stands, under the layer's own name.

    Raises:
        Untranslatable: a wrapper without a layer.
    """
    unwrapped: dict[str, Any] = copy.deepcopy(dict(entry))
    _take_off_inside(unwrapped)
    return unwrapped


def _take_off_inside(entry: dict[str, Any]) -> None:
    config = entry.get("config")
    layers = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(layers, list):
        return
    names = {}
    for position, layer in enumerate(layers):
        if layer.get("class_name") == CLASS_NAME:
            layers[position] = layer = _unwrap(layer)
            names[layer[WRAPPER]] = layer["name"]
        _take_off_inside(layer)
    if isinstance(config, dict):
        calls = [layer.get("inbound_nodes", []) for layer in layers]
        for leaf in find_leaves([calls, config.get("input_layers", []), config.get("output_layers", [])]):
            leaf[0] = names.get(leaf[0], leaf[0])


def _unwrap(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    config = wrapper["config"]
    name, inner = str(wrapper.get("name") or config["name"]), config.get("layer")
    if not isinstance(inner, dict) or not isinstance(inner.get("config"), dict):
        raise Untranslatable(name, f"is a {CLASS_NAME} without a layer")
    inner = {**inner, "name": inner["config"].get("name", name), WRAPPER: name}
    if "batch_input_shape" in config:
        inner["config"].setdefault("batch_input_shape", config["batch_input_shape"])
    if "inbound_nodes" in wrapper:
        inner["inbound_nodes"] = wrapper["inbound_nodes"]
    return inner


def mask_named(items: Sequence[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """What an HDF5 file has of a layer or of a model, without what is wrappers' own.

    Args:
        items: names and arrays: 'prune_low_magnitude_conv/mask:0' is for a weight below that, or below 'conv'.

    Raises:
        Untranslatable: a mask that belongs to no weight.
    """
    kept = {name: array for name, array in items if not _OWN.search(name)}
    masks: dict[str, list[np.ndarray]] = {}
    for name, array in items:
        if (found := _OWN.search(name)) and found[1] == "mask":
            masks.setdefault(name.split("/")[-2], []).append(array)
    for wrapper, own in masks.items():
        owners = {wrapper, wrapper.removeprefix(_PREFIX)}
        names = [name for name in kept if owners & set(name.split("/"))]
        kept |= dict(zip(names, mask([kept[name] for name in names], own, wrapper), strict=True))
    return list(kept.items())


def find_masks(own: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The masks among what an archive has for a wrapper itself: beside them a copy of each weight, and single numbers.

    A mask is made of nothing but zeros and ones.
    """
    return [array for array in own if array.ndim and np.isin(array, (0, 1)).all()]


def mask(arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray], wrapper: str) -> list[np.ndarray]:
    """Weights, each mask applied to the first of its shape that has none yet.

    Raises:
        Untranslatable: there is none.
    """
    masked, done = list(arrays), set()
    for each in masks:
        fitting = [i for i, array in enumerate(arrays) if i not in done and array.shape == each.shape]
        if not fitting:
            raise Untranslatable(wrapper, f"has a mask of shape {each.shape}, and no weight of that shape")
        done.add(fitting[0])
        masked[fitting[0]] = arrays[fitting[0]] * each.astype(arrays[fitting[0]].dtype)
    return masked
