r"""The weights in a `.keras` archive of Keras 2: a folder a layer, named by its class and numbered within its model.

The folders of a model's layers lie in its `layers`, in old archives in `_layer_checkpoint_dependencies`, and there the
numbers have gaps. Layers made of layers keep these in folders named by attributes. Where Windows wrote the file, `\`
stands between the names. Source: tf_keras.src.saving.saving_lib.
"""

import dataclasses
import io
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping

import h5py
import keras
import numpy as np

from reflow_tf.models.keras2.hdf5 import check_dataset
from reflow_tf.models.keras2.pruning_wrappers import CLASS_NAME, find_masks, mask
from reflow_tf.models.keras2.refusal import Untranslatable
from reflow_tf.models.keras2.translation import SavedLayer

_MEMBER = "model.weights.h5"
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies", "_self_tracked_trackables")
_NUMBER = re.compile(r"(?:_(\d+))?$")


@dataclasses.dataclass(frozen=True)
class Part:
    """Weights that belong together.

    Attributes:
        name: of the layer in the file.
        variables: of the model.
        arrays: of the file, in the same order.
    """

    name: str
    variables: list[keras.Variable]
    arrays: list[np.ndarray]


def read_archive(model: keras.Model, saved: SavedLayer, path: pathlib.Path) -> list[Part]:
    """Which array of the archive goes where.

    Raises:
        Untranslatable: a layer that has no folder of its own, or a folder that belongs to no layer.
        OSError, KeyError, ValueError, zipfile.BadZipFile: damaged archive.
    """
    folders: dict[str, dict[str, np.ndarray]] = {}

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read(_MEMBER)), "r") as file:

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                folder, _, number = name.replace("\\", "/").rpartition("/")
                if folder.rpartition("/")[2] == "vars":
                    check_dataset(item)
                    folders.setdefault(folder.removesuffix("vars"), {})[number] = np.asarray(item)

        file.visititems(visit)
    arrays = {
        folder: [by_number[number] for number in sorted(by_number, key=int)] for folder, by_number in folders.items()
    }
    return list(_match_model(model, saved, "", arrays))


def _match_model(
    model: keras.Model, saved: SavedLayer, folder: str, arrays: Mapping[str, list[np.ndarray]]
) -> Iterator[Part]:
    """Gives each layer of a model the folder with its number among those of its class."""
    inside = [container for container in _CONTAINERS if any(key.startswith(f"{folder}{container}/") for key in arrays)]
    # A wrapper counts its calls, whatever it is around.
    weighty = [child for child in saved.layers if child.wrapper or model.get_layer(child.name).weights]
    if not weighty:
        return
    if not inside:
        raise Untranslatable(saved.saved_name, "has no weights in the file")
    prefix = f"{folder}{inside[0]}/"
    found = {key[len(prefix) :].split("/")[0] for key in arrays if key.startswith(prefix)}
    for stem in dict.fromkeys(map(_find_stem, weighty)):
        children = [child for child in weighty if _find_stem(child) == stem]
        numbered = sorted((name for name in found if _NUMBER.sub("", name) == stem or name == stem), key=_read_number)
        if len(numbered) != len(children):
            names = ", ".join(child.saved_name for child in children)
            raise Untranslatable(names, f"needs {len(children)} sets of weights; the file has {len(numbered)}")
        for child, name in zip(children, numbered, strict=True):
            yield from _match_layer(model.get_layer(child.name), child, f"{prefix}{name}/", arrays)
        found -= set(numbered)
    if found:
        raise Untranslatable(
            saved.saved_name, f"has weights in the file that no layer takes: {', '.join(sorted(found))}"
        )


def _match_layer(
    layer: keras.Layer, saved: SavedLayer, folder: str, arrays: Mapping[str, list[np.ndarray]]
) -> Iterator[Part]:
    if saved.wrapper:
        masks = find_masks(arrays.get(folder, []))
        for part in _match_layer(layer, dataclasses.replace(saved, wrapper=None), f"{folder}layer/", arrays):
            yield dataclasses.replace(part, arrays=mask(part.arrays, masks, saved.wrapper) if part.variables else [])
        return
    if saved.is_model:
        yield from _match_model(layer, saved, folder, arrays)
        return
    if saved.class_name == "TimeDistributed":
        inner = _find_wrapped([key[len(folder) :] for key in arrays if key.startswith(folder)])
        yield from _match_layer(layer.layer, saved.layers[0], folder + inner, arrays)
        return
    parts = _list_parts(layer)
    rest = {key: values for key, values in arrays.items() if key.startswith(folder)}
    chosen = {attribute: rest.pop(f"{folder}{attribute}", None) for attribute in parts}
    left = [rest[key] for key in sorted(rest, key=_read_numbers)]  # the folders that have other names than attributes
    for attribute, part in parts.items():
        values = chosen[attribute]
        if values is None:
            values = left.pop(0) if left else []
        yield Part(saved.saved_name, list(part.weights), values)
    if left:
        raise Untranslatable(saved.saved_name, "has more weights in the file than Keras 3 knows")


def _list_parts(layer: keras.Layer) -> dict[str, keras.Layer]:
    """Folder inside the layer's -> what its weights belong to."""
    if isinstance(layer, keras.layers.Bidirectional):
        return {"forward_layer/cell/": layer.forward_layer.cell, "backward_layer/cell/": layer.backward_layer.cell}
    if isinstance(layer, keras.layers.MultiHeadAttention):
        names = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")
        return {f"{name}/": getattr(layer, name) for name in names}
    if isinstance(layer, keras.layers.RNN):
        return {"cell/": layer.cell}
    return {"": layer}


def _find_wrapped(paths: list[str]) -> str:
    """The folder of the layer inside another one: its attribute, or in old archives a numbered one."""
    if any(path.startswith("layer/") for path in paths):
        return "layer/"
    return next(("/".join(path.split("/")[:2]) + "/" for path in paths), "")


def _find_stem(saved: SavedLayer) -> str:
    return _make_stem(CLASS_NAME if saved.wrapper else saved.class_name)


def _make_stem(class_name: str) -> str:
    """'DepthwiseConv2D' -> 'depthwise_conv2d', as Keras names folders."""
    spaced = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", spaced).lower()


def _read_number(name: str) -> int:
    match = _NUMBER.search(name)
    return int(match[1] or 0) if match else 0


def _read_numbers(path: str) -> list[tuple[str, int]]:
    return [(_NUMBER.sub("", name), _read_number(name)) for name in path.split("/")]
