"""Files of Keras 2 with other words in their configuration, as other versions wrote them or as damage leaves them."""

import json

import h5py


def edit(source, target, change, version="2.9.0"):
    """Copies an HDF5 file with another configuration and version."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "a") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(change(config) or config)
        file.attrs["keras_version"] = version
    return target


def layers_of(config):
    """The configuration of every layer, models in models included."""
    layers = config["config"] if isinstance(config["config"], list) else config["config"]["layers"]
    for layer in layers:
        yield layer
        if "layers" in layer["config"]:
            yield from layers_of(layer)
