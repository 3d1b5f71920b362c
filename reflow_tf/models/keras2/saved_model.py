"""A SavedModel folder as Keras 2 writes one: the configuration of every layer, and a checkpoint with the weights.

`keras_metadata.pb` has, for each object that Keras knows, its number in the object graph and its configuration as JSON.
The checkpoint has the same graph: a model's layers are its children 'layer-0', 'layer-1', …, and a layer's weights the
children '0', '1', … of its child 'variables'. Nothing of the TensorFlow functions in `saved_model.pb` is read.
Sources: tf_keras.src.saving.legacy.saved_model, tensorflow/core/protobuf/trackable_object_graph.proto.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2
from tensorflow.python.keras.protobuf import saved_metadata_pb2

from reflow_tf.models.keras2.refusal import Untranslatable

METADATA = "keras_metadata.pb"
_ROOT = 0
_LAYER = re.compile(r"layer-\d+")
_VALUE = "VARIABLE_VALUE"


class SavedModel:
    """The folder.

    Args:
        path: with `METADATA` in it.

    Raises:
        OSError, ValueError, KeyError, google.protobuf.message.DecodeError, tf.errors.OpError: damaged, or incomplete.
    """

    def __init__(self, path: pathlib.Path):
        saved = saved_metadata_pb2.SavedMetadata.FromString((path / METADATA).read_bytes())
        self._metadata: dict[int, dict[str, Any]] = {
            node.node_id: json.loads(node.metadata) for node in saved.nodes if node.metadata
        }
        self._path = path

    @property
    def root(self) -> dict[str, Any]:
        """What Keras wrote of the model: 'class_name', 'config', 'keras_version', …."""
        return self._metadata[_ROOT]

    def open_weights(self) -> "Weights":
        """The checkpoint."""
        return Weights(self._path, {number: str(each.get("name")) for number, each in self._metadata.items()})


class Weights:
    """The weights of a SavedModel, layer by layer.

    Args:
        path: of the folder.
        names: number of an object -> its name.
    """

    def __init__(self, path: pathlib.Path, names: dict[int, str]):
        self._reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        graph = self._reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        self._nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(graph).nodes
        self._names = names

    def find_layer(self, name: str, model: int = _ROOT) -> int:
        """The number of a layer of a model.

        Raises:
            Untranslatable: there is none of that name.
        """
        for child in self._nodes[model].children:
            if _LAYER.fullmatch(child.local_name) and self._names.get(child.node_id) == name:
                return int(child.node_id)
        raise Untranslatable(name, "has no weights in the file")

    def find_wrapped(self, wrapper: int) -> int:
        """The number of the layer in a wrapper."""
        return self._children(wrapper)["layer"]

    def read(self, layer: int, names: Sequence[str] = ()) -> list[np.ndarray]:
        """All weights of a layer: what training moves first, then the rest.

        Args:
            layer: its number.
            names: of the weights, in the order that is wanted of a layer that keeps no list of them.
        """
        return [self._reader.get_tensor(key) for key in self._keys(layer, names)]

    def read_own(self, wrapper: int) -> list[np.ndarray]:
        """Those of a wrapper that are not those of the layer in it."""
        inner = set(self._keys(self.find_wrapped(wrapper)))
        return [self._reader.get_tensor(key) for key in self._keys(wrapper) if key not in inner]

    def _keys(self, layer: int, names: Sequence[str] = ()) -> list[str]:
        children = self._children(layer)
        if "variables" in children:
            listed = self._children(children["variables"])
            nodes = [listed[number] for number in sorted(listed, key=int)]
        else:  # a preprocessing layer: they are attributes of its own, among others
            nodes = [children[name] for name in names if name in children]
        attributes = [attribute for node in nodes for attribute in self._nodes[node].attributes]
        return [attribute.checkpoint_key for attribute in attributes if attribute.name == _VALUE]

    def _children(self, node: int) -> dict[str, int]:
        return {child.local_name: int(child.node_id) for child in self._nodes[node].children}
