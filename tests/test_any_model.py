"""Any functional model: drawn towers, layers that two of them share, any number of inputs and outputs.

Demanded of each: zeros stay where the masks have them, every variable that the repair does not promise to move is bit
for bit what it was, and the file computes what the Keras model does.
"""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import reflow_tf
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.inference import list_output_names
from reflow_tf.runtimes.litert import LiteRT

NUM = 48
ON_MAPS = {
    "conv": lambda x, n: layers.Conv2D(n, 3, padding="same", activation="relu")(x),
    "pointwise": lambda x, n: layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(n, 1, use_bias=False)(x))),
    "strided": lambda x, n: layers.BatchNormalization()(layers.Conv2D(n, 3, strides=2, padding="same")(x)),
    "depthwise": lambda x, n: layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)),
    "transposed": lambda x, n: layers.Conv2DTranspose(n, 2, strides=2)(x),
    "residual": lambda x, n: layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(layers.ReLU()(x))]),
    "two paths": lambda x, n: layers.Concatenate()([layers.Conv2D(n, 1)(x), layers.Conv2D(n, 3, padding="same")(x)]),
    "excited": lambda x, n: layers.Multiply()(
        [x, layers.Dense(x.shape[-1], "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))]
    ),
    "called twice": lambda x, n: (lambda layer: layer(layers.ReLU()(layer(x))))(layers.Conv2D(x.shape[-1], 1)),
}
INPUTS = {
    "image": lambda: layers.Input((6, 6, 3), name="image"),
    "bytes": lambda: layers.Input((6, 6, 3), dtype="uint8", name="bytes"),
    "vector": lambda: layers.Input((10,), name="vector"),
    "words": lambda: layers.Input((4,), dtype="int32", name="words"),
    "pixels": lambda: layers.Input((6, 6, 3), dtype="int32", name="pixels"),
    "user": lambda: layers.Input((), dtype="int32", name="user"),
}
HEADS = {
    "classes": lambda x, n: layers.Dense(n, "softmax")(x),
    "numbers": lambda x, n: layers.Rescaling(100.0)(layers.Dense(n)(x)),
    "flags": lambda x, n: layers.Dense(n, "sigmoid")(layers.BatchNormalization()(layers.Dense(8, "relu")(x))),
}

tower = st.lists(st.tuples(st.sampled_from(sorted(ON_MAPS)), st.sampled_from([4, 6, 8])), min_size=1, max_size=3)
model_of = {
    "inputs": st.lists(st.sampled_from(sorted(INPUTS)), min_size=1, max_size=3, unique=True).filter(
        lambda names: names != ["user"]  # alone it has no axis beside that of samples, and is refused
    ),
    "steps": tower,
    "heads": st.lists(st.tuples(st.sampled_from(sorted(HEADS)), st.integers(2, 5)), min_size=1, max_size=3),
    "is_shared": st.booleans(),  # one layer at the end of all towers
    "as_dict": st.booleans(),
}


def build(inputs, steps, heads, is_shared, as_dict):
    keras.utils.set_random_seed(0)
    given_inputs = {name: INPUTS[name]() for name in inputs}
    shared = layers.Dense(6, "relu")
    ends = []
    for name, x in given_inputs.items():
        if name == "words":
            x = layers.Embedding(10, 4)(x)
            x = layers.Flatten()(layers.Conv1D(4, 2, activation="relu")(x))
        elif name == "user":
            x = layers.Dense(6, "relu")(layers.Embedding(10, 4)(x))
        elif name == "vector":
            x = layers.BatchNormalization()(layers.Dense(12)(x))
        else:
            x = layers.Rescaling(1.0 if name == "image" else 1 / 64)(x)
            for step, size in steps:
                x = ON_MAPS[step](x, size)
            x = layers.GlobalAveragePooling2D()(x)
        ends.append(shared(layers.Dense(7)(x)) if is_shared else x)
    x = ends[0] if len(ends) == 1 else layers.Concatenate()(ends)
    outputs = {f"head_{place}": HEADS[head](x, size) for place, (head, size) in enumerate(heads)}
    if not as_dict:
        outputs = list(outputs.values()) if len(outputs) > 1 else outputs["head_0"]
    return keras.Model(given_inputs if as_dict else list(given_inputs.values()), outputs)


def draw(model):
    rng = np.random.default_rng(0)
    tops = {"image": None, "vector": None, "bytes": 255, "pixels": 255, "words": 10, "user": 10}
    return {
        tensor.name: (
            rng.normal(size=(NUM, *tensor.shape[1:])).astype(np.float32)
            if tops[tensor.name] is None
            else rng.integers(0, tops[tensor.name], (NUM, *tensor.shape[1:])).astype(tensor.dtype)
        )
        for tensor in model.inputs
    }


def compute(model, data):
    taken = data if isinstance(model.input, dict) else [data[tensor.name] for tensor in model.inputs]
    taken = taken[0] if isinstance(taken, list) and len(taken) == 1 else taken
    outputs = keras.tree.flatten(model(taken, training=False))
    return np.concatenate([np.asarray(output).reshape(NUM, -1) for output in outputs], axis=1)


def may_move(repair, path, masks):
    """What the repair says of itself: moments; of least squares kernels and biases of the layers it refits as well."""
    name = path.rpartition("/")[2]
    if repair == "none":
        return path in masks
    return path in masks or "moving" in name or (repair == "least_squares" and ("kernel" in name or name == "bias"))


@pytest.mark.slow
@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(**model_of, repair=st.sampled_from(["none", "reflow", "least_squares"]))
def test_any_model(inputs, steps, heads, is_shared, as_dict, repair):
    model = build(inputs, steps, heads, is_shared, as_dict)
    names = list_output_names(model)
    assert len(set(names)) == len(heads) and (not as_dict or names == tuple(f"head_{n}" for n in range(len(heads))))
    data = draw(model)
    before = [np.array(variable) for variable in model.variables]
    config = reflow_tf.PruneConfig(sparsity=0.5, target="storage", repair=repair, basis="kept")
    result = reflow_tf.prune(model, config, data)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)  # the model that was given stays as it is

    kernels = find_kernels(result.model)
    weights = kernels.read()
    masks = result.masks
    zeros = sum(int(np.sum(~mask)) for mask in masks.values())
    assert zeros == round(0.5 * sum(mask.size for mask in masks.values()))
    for path, mask in masks.items():
        assert not weights[path][~mask].any()
    paths = {id(variable): path for path, variable in kernels.variables.items()}
    dense = find_kernels(model).read()
    for own, value in zip(result.model.variables, before, strict=True):
        path = paths.get(id(own), own.path)
        if not may_move(repair, path, masks):
            np.testing.assert_array_equal(own, value)
        elif path in masks and repair != "least_squares":
            np.testing.assert_array_equal(weights[path], np.where(masks[path], dense[path], 0))

    file = LiteRT(reflow_tf.export_tflite(result.model).content)
    rows = np.concatenate([data[t.name].reshape(NUM, -1) for t in model.inputs], axis=1).astype(np.float32)
    given_rows = rows if len(model.inputs) > 1 else rows.reshape(NUM, *model.inputs[0].shape[1:])
    expected = compute(result.model, data)
    found = file.run(given_rows).reshape(NUM, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
