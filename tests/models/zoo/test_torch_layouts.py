"""PyTorch checkpoints: the Keras network against a forward pass written directly on PyTorch's tensors.

The forward passes below share nothing with the package: they ask for each tensor by PyTorch's name and shape, which
also creates the synthetic checkpoint, and pad and normalize the way the PyTorch networks do.
"""

import sys
import types

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.loading import load_model

NUM_CLASSES = 5
# Small on purpose: beside it an epsilon of 1e-3 instead of 1e-5 moves the output by percents.
VARIANCE = 0.02


class Checkpoint:
    """A state dict that comes into being as the forward pass asks for tensors."""

    def __init__(self):
        self.state, self.rng = {}, np.random.default_rng(3)

    def tensor(self, name, shape, low=-0.1, high=0.1):
        return self.state.setdefault(name, self.rng.uniform(low, high, shape).astype(np.float32))

    def conv(self, x, name, filters, size, stride=1, groups=1, pads=(0, 0)):
        inputs = x.shape[-1] // groups
        bound = np.sqrt(6 * VARIANCE / (inputs * size * size))
        kernel = self.tensor(f"{name}.weight", (filters, inputs, size, size), -bound, bound)
        x = tf.pad(x, ((0, 0), pads, pads, (0, 0)))
        if groups == 1:
            return tf.nn.conv2d(x, np.transpose(kernel, (2, 3, 1, 0)), stride, "VALID")
        return tf.nn.depthwise_conv2d(x, np.transpose(kernel, (2, 3, 0, 1)), (1, stride, stride, 1), "VALID")

    def norm(self, x, name, epsilon):
        n = x.shape[-1]
        mean, variance = self.tensor(f"{name}.running_mean", n), self.tensor(f"{name}.running_var", n, 0.01, 0.03)
        gamma, beta = self.tensor(f"{name}.weight", n, 0.7, 1.3), self.tensor(f"{name}.bias", n, 0.1, 0.5)
        self.state[f"{name}.num_batches_tracked"] = np.array(7, np.int64)
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta

    def classify(self, x, name):
        features = tf.reduce_mean(x, (1, 2)).numpy()
        bound = 5 / np.linalg.norm(features, axis=-1).max()  # keeps the softmax from saturating
        weight = self.tensor(f"{name}.weight", (NUM_CLASSES, features.shape[-1]), -bound, bound)
        return tf.nn.softmax(features @ weight.T + self.tensor(f"{name}.bias", NUM_CLASSES)).numpy()


def mobilenet_v2(c, x):
    def norm(x, name):
        return c.norm(x, name, 1e-5)

    x = tf.nn.relu6(norm(c.conv(x, "features.0.0", 32, 3, 2, pads=(1, 1)), "features.0.1"))
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    blocks = [(t, f, s if i == 0 else 1) for t, f, n, s in table for i in range(n)]
    for index, (expansion, filters, stride) in enumerate(blocks, start=1):
        y, p, n = x, f"features.{index}.conv", 0
        if expansion > 1:
            y, n = tf.nn.relu6(norm(c.conv(y, f"{p}.0.0", y.shape[-1] * expansion, 1), f"{p}.0.1")), 1
        y = c.conv(y, f"{p}.{n}.0", y.shape[-1], 3, stride, y.shape[-1], pads=(1, 1))
        y = tf.nn.relu6(norm(y, f"{p}.{n}.1"))
        y = norm(c.conv(y, f"{p}.{n + 1}", filters, 1), f"{p}.{n + 2}")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return c.classify(tf.nn.relu6(norm(c.conv(x, "features.18.0", 1280, 1), "features.18.1")), "classifier.1")


def efficientnet_lite0(c, x):
    def norm(x, name):
        return c.norm(x, name, 1e-3)

    def same(x, size, stride):
        total = max((-(-x.shape[1] // stride) - 1) * stride + size - x.shape[1], 0)
        return total // 2, total - total // 2

    x = tf.nn.relu6(norm(c.conv(x, "_conv_stem", 32, 3, 2, pads=same(x, 3, 2)), "_bn0"))
    table = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3)]
    table += [(5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]
    blocks = [(k, s if i == 0 else 1, e, f) for k, s, e, f, n in table for i in range(n)]
    for index, (size, stride, expansion, filters) in enumerate(blocks):
        y, p = x, f"_blocks.{index}"
        if expansion > 1:
            y = tf.nn.relu6(norm(c.conv(y, f"{p}._expand_conv", y.shape[-1] * expansion, 1), f"{p}._bn0"))
        pads = same(y, size, stride)
        y = c.conv(y, f"{p}._depthwise_conv", y.shape[-1], size, stride, y.shape[-1], pads)
        y = tf.nn.relu6(norm(y, f"{p}._bn1"))
        y = norm(c.conv(y, f"{p}._project_conv", filters, 1), f"{p}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return c.classify(tf.nn.relu6(norm(c.conv(x, "_conv_head", 1280, 1), "_bn1")), "_fc")


def resnet20(c, x):
    def conv(x, name, filters, stride=1):
        number = name.removeprefix("conv") if "." not in name else name.rpartition("conv")[2]
        bn = f"{name.rpartition('conv')[0]}bn{number}"
        return c.norm(c.conv(x, name, filters, 3, stride, pads=(1, 1)), bn, 1e-5)

    x = tf.nn.relu(conv(x, "conv1", 16))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            y = tf.nn.relu(conv(x, f"layer{stage}.{block}.conv1", filters, stride))
            y = conv(y, f"layer{stage}.{block}.conv2", filters)
            if stride == 2:
                x = tf.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (filters // 4, filters // 4)))
            x = tf.nn.relu(x + y)
    return c.classify(x, "linear")


FORWARDS = {"mobilenet_v2": mobilenet_v2, "efficientnet_lite0": efficientnet_lite0, "resnet20": resnet20}


def make_checkpoint(name, image_size=32):
    checkpoint = Checkpoint()
    images = np.random.default_rng(1).normal(size=(4, image_size, image_size, 3)).astype(np.float32)
    return checkpoint, images, FORWARDS[name](checkpoint, images)


def save(state, path):
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet20_state():
    return make_checkpoint("resnet20")[0].state


# 64: the stages' sizes are even (where TF's and PyTorch's padding differ most); 36: odd ones occur too.
@pytest.mark.parametrize(
    ("name", "image_size"),
    [("mobilenet_v2", 64), ("efficientnet_lite0", 64), ("efficientnet_lite0", 36), ("resnet20", 32)],
)
def test_computes_what_the_pytorch_network_computes(name, image_size, tmp_path):
    checkpoint, images, expected = make_checkpoint(name, image_size)
    path = save(checkpoint.state, tmp_path / "weights.safetensors")
    loaded = load_model(name, weights=path, image_size=image_size)
    actual = np.asarray(loaded.model(images, training=False))
    assert np.ptp(expected, axis=0).max() > 0.01  # the images are told apart, so agreement says something
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert loaded.num_classes == NUM_CLASSES
    assert loaded.default_data is None


def test_torchvision_weights_bring_torchvision_preprocessing(tmp_path):
    checkpoint, _, _ = make_checkpoint("mobilenet_v2")
    loaded = load_model("mobilenet_v2", weights=save(checkpoint.state, tmp_path / "w.safetensors"))
    preprocessing = loaded.preprocessing
    assert (preprocessing.scaling, preprocessing.crop_fraction, preprocessing.size) == ("torch", 0.875, (224, 224))


def test_the_prefix_of_data_parallel_is_taken_off(resnet20_state, tmp_path):
    plain = load_model("resnet20", weights=save(resnet20_state, tmp_path / "plain.safetensors"))
    prefixed = {f"module.{name}": array for name, array in resnet20_state.items()}
    wrapped = load_model("resnet20", weights=save(prefixed, tmp_path / "wrapped.safetensors"))
    for a, b in zip(plain.model.get_weights(), wrapped.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_counters_may_be_absent_and_half_precision_is_widened(resnet20_state, tmp_path):
    state = {n: a.astype(np.float16) for n, a in resnet20_state.items() if not n.endswith("num_batches_tracked")}
    model = load_model("resnet20", weights=save(state, tmp_path / "w.safetensors")).model
    expected = state["linear.weight"].astype(np.float32).T
    np.testing.assert_array_equal(model.get_layer("predictions").kernel.numpy(), expected)


def break_shape(state):
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:, :8]


def break_dtype(state):
    state["bn1.weight"] = state["bn1.weight"].astype(np.int32)


def drop(state):
    del state["layer3.2.bn2.running_var"]


def add(state):
    state["layer2.0.shortcut.0.weight"] = np.zeros((32, 16, 1, 1), np.float32)


def add_stray_counter(state):
    state["layer9.0.bn1.num_batches_tracked"] = np.array(1, np.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_shape, r"layer1\.0\.conv1\.weight has shape \(16, 8, 3, 3\) where \(16, 16, 3, 3\) is required"),
        (break_dtype, "bn1.weight is int32 where floating point is required"),
        (drop, r"missing layer3\.2\.bn2\.running_var"),
        (add, r"unexpected layer2\.0\.shortcut\.0\.weight"),
        (add_stray_counter, r"unexpected layer9\.0\.bn1\.num_batches_tracked"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(damage, message, resnet20_state, tmp_path):
    state = dict(resnet20_state)
    damage(state)
    path = save(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_model("resnet20", weights=path)
    assert "1 of its tensors" in str(error.value)
    assert path in str(error.value)


def test_many_misfits_are_cut_short(resnet20_state, tmp_path):
    state = {name: array for name, array in resnet20_state.items() if not name.startswith("layer")}
    with pytest.raises(InputError, match="and 85 more"):  # 18 convolutions and 18 times 4 of batch norm, 5 listed
        load_model("resnet20", weights=save(state, tmp_path / "w.safetensors"))


def test_another_layout_is_refused(resnet20_state, tmp_path):
    with pytest.raises(InputError, match=r"layout of torchvision's mobilenet_v2, .*'classifier.1.weight'"):
        load_model("mobilenet_v2", weights=save(resnet20_state, tmp_path / "w.safetensors"))


def test_an_architecture_without_a_layout_names_those_that_have_one(resnet20_state, tmp_path):
    with pytest.raises(
        InputError,
        match=r"mobilenet, mobilenet_v2, .*efficientnet_lite0.*resnet50, resnet20, resnext50.*for efficientnet_b0",
    ):
        load_model("efficientnet_b0", weights=save(resnet20_state, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("keep", [0, 5, 40, 5000])
def test_a_truncated_safetensors_file_is_refused(keep, resnet20_state, tmp_path):
    path = tmp_path / "w.safetensors"
    save(resnet20_state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"readable \.safetensors"):
        load_model("resnet20", weights=str(path))


@pytest.mark.parametrize("suffix", [".pth", ".th"])
def test_pth_without_torch_says_what_to_do(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / f"w{suffix}").write_bytes(b"x")
    with pytest.raises(InputError, match=rf"A {suffix} file .*pip install torch, or convert it to \.safetensors"):
        load_model("resnet20", weights=str(tmp_path / f"w{suffix}"))


class FakeTensor:
    """As much of torch.Tensor as reading a state dict needs."""

    def __init__(self, array):
        self.array = array

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        return self.array


def install_fake_torch(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=FakeTensor, load=load))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "best_prec1": 91.7}])
def test_pth_is_read_with_weights_only(suffix, wrap, resnet20_state, tmp_path, monkeypatch):
    calls = []

    def load(path, **options):
        calls.append(options)
        return wrap({f"module.{name}": FakeTensor(array) for name, array in resnet20_state.items()})

    install_fake_torch(monkeypatch, load)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"x")
    model = load_model("resnet20", weights=str(path)).model
    assert calls == [{"weights_only": True, "map_location": "cpu"}]
    np.testing.assert_array_equal(model.get_layer("predictions").kernel.numpy(), resnet20_state["linear.weight"].T)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"a": "text"}}])
def test_pth_without_a_state_dict_is_refused(content, tmp_path, monkeypatch):
    install_fake_torch(monkeypatch, lambda path, **options: content)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="must hold a state dict"):
        load_model("resnet20", weights=str(tmp_path / "w.pth"))


def test_pth_that_torch_refuses_never_advises_unsafe_loading(tmp_path, monkeypatch):
    def load(path, **options):
        raise RuntimeError("re-run with weights_only=False")

    install_fake_torch(monkeypatch, load)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="plain tensors") as error:
        load_model("resnet20", weights=str(tmp_path / "w.pth"))
    assert "weights_only=False" not in str(error.value)
