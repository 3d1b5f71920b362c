import dataclasses

import numpy as np
import pytest

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.reading import read_network
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import JobConfig
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.targets.cortex_m import OPERATORS, CortexM


def with_kind(content, kind):
    """The graph with its convolutions called something else."""
    graph = read_operators(content)
    operators = [dataclasses.replace(o, kind=kind) if o.kind == "CONV_2D" else o for o in graph.operators]
    return dataclasses.replace(graph, operators=tuple(operators))


def test_an_int8_file_can_become_c(int8_file):
    verdict = CortexM().judge(read_operators(int8_file[0]))
    assert verdict.eligible and not verdict.blockers
    assert read_network(int8_file[0]).layers


def test_a_float_file_cannot(settled):
    content = export_tflite(settled[0], storage="dense").content
    (blocker,) = CortexM().judge(read_operators(content)).blockers
    assert "computes in float32" in blocker.reason and "--quantize=int8" in blocker.remedy
    with pytest.raises(InputError):
        read_network(content)


def test_an_operator_without_a_kernel_is_named(int8_file):
    (blocker,) = CortexM().judge(with_kind(int8_file[0], "CONV_3D")).blockers
    assert blocker.operator == "conv_0 and 2 more"
    assert "is a CONV_3D, for which there is no C kernel" in blocker.reason and "--target=tflm" in blocker.remedy


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_the_generator_reads_what_the_target_promises(kind):
    from reflow_tf.export.c_kernels import reading

    assert f'"{kind}"' in reading.__loader__.get_source(reading.__name__)


def test_depthwise_kernels_are_left_alone():
    depthwise = LayerSpec("dw/kernel", Kind.DEPTHWISE_CONV, (3, 3, 8, 1), (2, 3), ())
    dense = LayerSpec("head/kernel", Kind.DENSE, (8, 10), (1,), (0,))
    assert "depthwise" in CortexM().objection(depthwise) and CortexM().objection(dense) is None


def test_a_weight_that_is_kept_costs_its_index_unless_the_kernel_is_dense(int8_file):
    price = next(iter(CortexM().price(read_operators(int8_file[0])).prices.values()))
    np.testing.assert_allclose(price.per_weight(np.array([0.0, 0.5, 0.8])), [1.0, 1.0, 0.4])


def test_boards_and_accelerators_are_checked():
    prune = PruneConfig(target="cortex_m")
    assert JobConfig(model="m", output_dir="o", prune=prune).requested_quantize == "int8"
    for flags, said in (
        ({"boards": ("m0",)}, "--boards must be one of m3, m4, m7, m55. Received: m0"),
        ({"boards": ()}, "--boards must name at least one"),
        ({"accelerator": "npu"}, "--accelerator must be one of ethos-u55-32"),
    ):
        with pytest.raises(InputError, match=said):
            JobConfig(model="m", output_dir="o", prune=prune, **flags)


@pytest.mark.parametrize("target", ["cortex_m", "ethos_u"])
def test_a_file_that_zeros_do_not_shrink_has_no_budget_of_size(target):
    with pytest.raises(InputError, match=f"whose .tflite gets smaller.*--target={target} does not"):
        PruneConfig(target=target, max_size_bytes=1000)
