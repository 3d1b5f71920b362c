"""The HDF5 layout of Keras 2: names of layers and of their weights as attributes, a dataset a weight."""

import h5py

# Deflate makes at most so many bytes of one; what a file declares beyond that, nobody wrote into it.
_MOST_BYTES_OF_ONE = 1032
_REAL = "biuf"


def read_layers(file: h5py.Group) -> list[tuple[str, list[h5py.Dataset]]]:
    """(name of a layer, its weights), in the order of the file.

    Args:
        file: a file with weights alone, or with a whole model.

    Raises:
        KeyError: no such layout, or a weight that is named is not there.
        ValueError: a weight that is kept in another file.
    """
    group = file if _has_names(file, "layer_names") else open_inside(file, "model_weights")
    if not _has_names(group, "layer_names"):
        raise KeyError("layer_names")
    return [(name, _read_datasets(open_inside(group, name))) for name in _read_names(group, "layer_names")]


def _read_datasets(layer: h5py.Group) -> list[h5py.Dataset]:
    found = [open_inside(layer, name) for name in _read_names(layer, "weight_names")]
    for item in found:
        check_dataset(item)
    return found


def open_inside(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """What lies at a path, if it lies in the same file: a link in a file could point to any other on this computer.

    Raises:
        KeyError: nothing is there.
        ValueError: a link is there.
    """
    for name in filter(None, path.split("/")):
        if not isinstance(group.get(name, getlink=True), (h5py.HardLink, type(None))):
            raise ValueError(f"{path} is a link to another place")
        group = group[name]
    return group


def check_dataset(item: object) -> None:
    """Refuses what is no array of real numbers, one that is kept in another file, or one that is kept nowhere.

    Raises:
        ValueError: names it.
    """
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
        raise ValueError(f"{getattr(item, 'name', item)} is no array in this file")
    if item.dtype.kind not in _REAL:
        raise ValueError(f"{item.name} is not of real numbers but of {item.dtype}")
    if item.nbytes > _MOST_BYTES_OF_ONE * item.id.get_storage_size():  # reading it could fill the memory
        raise ValueError(f"{item.name} of shape {item.shape} was never written")


def _has_names(group: h5py.Group, attribute: str) -> bool:
    return attribute in group.attrs or f"{attribute}0" in group.attrs


def _read_names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; a long one is cut into attributes with a number behind."""
    if attribute in group.attrs:
        chunks = [group.attrs[attribute]]
    else:
        chunks, number = [], 0
        while f"{attribute}{number}" in group.attrs:
            chunks.append(group.attrs[f"{attribute}{number}"])
            number += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for chunk in chunks for name in chunk]
