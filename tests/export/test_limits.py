"""Budgets and the search for the least sparsity that meets one."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.limits import Foreseen, find_least, open_limit, require_reachable
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.graph import find_kernels
from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import Kind
from reflow_tf.sparsity.patterns import Unstructured


@dataclasses.dataclass
class Bytes:
    """A file of 1000 bytes that loses 10 for each weight that is zero."""

    value: float
    flag: str = "max_size_bytes"
    unfound: tuple[str, ...] = ()

    def estimate(self, masks):
        return 1000 - 10 * sum(int(np.count_nonzero(~mask)) for mask in masks.values())

    def admits(self, estimate):
        return estimate <= self.value

    def explain(self, best):
        return f"must be at least {best}"


def try_at(sparsity):
    return sparsity, {"layer": np.arange(90) >= round(90 * sparsity)}


@given(st.integers(100, 1100))
def test_the_least_sparsity_is_found(value):
    sparsity, masks, foreseen = find_least(Bytes(value), try_at, 1.0)
    assert foreseen.estimate == Bytes(value).estimate(masks) <= value
    assert sparsity == 0 or Bytes(value).estimate(try_at(sparsity - 0.001)[1]) > value - 10
    assert sparsity == 0 or foreseen.estimate > value - 10, "one weight more would have been too many"


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(InputError, match=r"--max_size_bytes must be at least 550. Received: 500"):
        find_least(Bytes(500), try_at, 0.5)


def test_what_came_of_it_is_judged_by_the_budget():
    assert Foreseen("max_size_bytes", 100, 90, ()).admits(100) and not Foreseen("max_size_bytes", 100, 90, ()).admits(
        101
    )
    assert Foreseen("min_speedup", 2, 2.1, ()).admits(2.0) and not Foreseen("min_speedup", 2, 2.1, ()).admits(1.99)


@pytest.fixture(scope="module")
def opened(strided):
    """Opens the limit of a configuration on the strided network; and its 1x1 kernels."""
    model = keras.models.load_model(strided)
    kernels = find_kernels(model)
    specs = [spec for spec in kernels.specs if spec.kind is Kind.POINTWISE_CONV]
    weights = {path: kernel for path, kernel in kernels.read().items() if path in {spec.path for spec in specs}}
    files = {rewrite: export_tflite(model, storage="dense", rewrite=rewrite).content for rewrite in ("exact", "none")}

    def open_it(rewrite="exact", **budget):
        return open_limit(PruneConfig(**budget), files[rewrite], weights), specs

    return open_it


def zeros_of(specs, sparsity):
    rng = np.random.default_rng(0)
    return {spec.path: Unstructured().select(rng.random(spec.canonical_shape), sparsity) for spec in specs}


def test_speed_counts_the_positions_of_each_layer_and_the_zeros_of_the_cluster(opened):
    limit, specs = opened(min_speedup=1.2, ballast="off")
    first, second = limit.prices["wide_1/kernel"], limit.prices["wide_2/kernel"]
    assert first.kept == pytest.approx(4 * second.kept), "256 positions and 64"
    assert limit.least_zeros == sum(spec.num_weights for spec in specs) * 2 // 3 + 1
    assert limit.estimate(zeros_of(specs, 0.66)) == 1 != limit.estimate(zeros_of(specs, 0.67))


def test_with_ballast_zeros_count_from_where_they_pay(opened):
    limit, specs = opened(min_speedup=1.01, device="browser")
    assert limit.least_zeros == 0
    estimates = [limit.estimate(zeros_of(specs, share)) for share in (0.0, 0.3, 0.5, 0.6, 0.66, 0.67, 0.8)]
    assert estimates == sorted(estimates) and estimates[0] == 1 < estimates[-1]


def test_bytes_are_counted_where_a_file_can_store_zeros(opened):
    limit, specs = opened(max_size_bytes=20_000)
    assert limit.prices == {spec.path: Price(5, 4) for spec in specs} and limit.least_zeros == 0
    assert limit.admits(20_000) and not limit.admits(20_001)


def test_budgets_out_of_reach_are_refused_with_what_could_be_had(opened):
    limit, specs = opened(min_speedup=3.5)
    best = limit.estimate(zeros_of(specs, 1.0))
    with pytest.raises(InputError, match=rf"--min_speedup must be at most {best:.2f}, .+ Received: 3.5"):
        require_reachable(limit, specs, 1.0, Unstructured())
    limit, specs = opened(max_size_bytes=3)
    with pytest.raises(
        InputError, match=rf"must be at least {limit.estimate(zeros_of(specs, 0.9)):.0f}, .+ Received: 3$"
    ):
        require_reachable(limit, specs, 0.9, Unstructured())


def test_a_network_that_cannot_run_sparse_has_no_speed_to_ask_for(opened):
    limit, specs = opened("none", min_speedup=1.1)
    with pytest.raises(InputError, match=r"needs a network that xnnpack can run sparse; .+: stem, .+: padding .+: 1.1"):
        require_reachable(limit, specs, 1.0, Unstructured())
