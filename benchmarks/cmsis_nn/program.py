"""An int8 .tflite file as calls of CMSIS-NN: the rival of the generated kernels, given all that it wants.

Buffers are as large as its *_get_buffer_size functions say, tensors share one arena, parameters are constants, kernels
are those that its wrappers choose. Where CMSIS-NN has no kernel that computes exactly what TFLite does, another of its
kernels stands in (a dense layer with a scale per channel is a 1x1 convolution), or plain C does (see plain_kernels.c).
PAD is the padding of the convolution that follows, which costs nothing.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sources import has_function
from tensors import Tensor, padding_before, read_tensors

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.rescaling import quantize_multiplier
from reflow_tf.export.operators import read_operators
from reflow_tf.runtimes.cortex_m.runtime import CortexM, End
from reflow_tf.targets.operators import Operator

_ALIGNMENT = 16
_NO_BUFFER = "0"


@dataclass
class Step:
    """One call.

    Attributes:
        call: C text; `{0}`, `{1}` are the inputs, `{out}` the output, `{buffer}` the scratch buffer's address.
        inputs: tensors that are read and not constant.
        output: tensor that is written.
        constants: C text of what the call refers to.
        buffer_call: C expression for the bytes of scratch memory.
    """

    call: str
    inputs: list[int]
    output: int
    constants: list[str] = field(default_factory=list)
    buffer_call: str = _NO_BUFFER


class Program:
    """The calls for one file.

    Args:
        content: an int8 .tflite file, batch 1.
        sources: CMSIS-NN's, as `read_sources` gives them.

    Raises:
        InputError: an operator, or a use of one, that is not written here.
    """

    def __init__(self, content: bytes, sources: Mapping[str, str]):
        self._graph = read_operators(content)
        self._tensors = read_tensors(content)
        self._sources = sources
        self._padded: dict[int, tuple[int, tuple[int, int]]] = {}  # output of PAD -> its input, rows and columns before
        self._same: dict[int, int] = {}  # output of RESHAPE -> its input
        self.plain: set[str] = set()  # kinds that plain C computes
        self.steps: list[Step] = []
        for operator in self._graph.operators:
            self._add(operator)

    def runtime(self, board: str, optimisation: str = "-O3") -> CortexM:
        """The program, built for a board."""
        wanted = [step.buffer_call for step in self.steps]
        probe = "".join(f"  sizes[{index}] = {call};\n" for index, call in enumerate(wanted))
        probe = f"  int32_t *sizes = (int32_t *)output;\n  (void)input;\n{probe}"
        probing = self._build(probe, 1, 4 * len(wanted), board, optimisation)
        sizes = probing.run_int8(np.zeros((1, 1), np.int8)).view("<i4")[0].tolist()
        body, arena_bytes = self._body(sizes)
        arena = f"static _Alignas(16) int8_t arena[{max(arena_bytes, 1)}];\n"
        ends = [self._tensors[index] for index in (self._graph.inputs[0], self._graph.outputs[0])]
        return self._build(body, *ends, board, optimisation, arena)

    def _build(
        self, body: str, source: Tensor | int, target: Tensor | int, board: str, optimisation: str, variables: str = ""
    ) -> CortexM:
        taken, given = (
            End((1, end), (1.0, 0)) if isinstance(end, int) else End(end.shape, (float(end.scales[0]), end.zero_point))
            for end in (source, target)
        )
        header = (
            f"#define REFLOW_INPUT_BYTES {math.prod(taken.shape)}\n"
            f"#define REFLOW_OUTPUT_BYTES {math.prod(given.shape)}\n"
        )
        here = pathlib.Path(__file__).parent
        files = {name: (here / name).read_text() for name in ("plain_kernels.c", "plain_kernels.h")}
        constants = "\n".join(text for step in self.steps for text in step.constants)
        text = f'#include "arm_nnfunctions.h"\n#include "plain_kernels.h"\n\n{constants}\n{variables}\n'
        text += f"void reflow_invoke(const int8_t *input, int8_t *output) {{\n{body}}}\n"
        files |= {"model.h": header, "model.c": text, **self._sources}
        return CortexM(files, [taken], [given], board=board, optimisation=optimisation)

    def _body(self, buffer_sizes: Sequence[int]) -> tuple[str, int]:
        offsets, buffers, arena_bytes = self._plan(buffer_sizes)
        names = {index: f"(arena + {offset})" for index, offset in offsets.items()}
        names |= {self._graph.inputs[0]: "input", self._root(self._graph.outputs[0]): "output"}
        lines = []
        for step, size, offset in zip(self.steps, buffer_sizes, buffers, strict=True):
            buffer = f"{{{f'arena + {offset}' if size else 'NULL'}, {size}}}"
            call = step.call.format(*(names[index] for index in step.inputs), out=names[step.output], buffer=buffer)
            lines.append(f"  {{\n{call}  }}\n")
        return "".join(lines), arena_bytes

    def _plan(self, buffer_sizes: Sequence[int]) -> tuple[dict[int, int], list[int], int]:
        """Offsets of tensors and scratch buffers in the arena, the largest first, each as low as it can be."""
        ends = {self._graph.inputs[0], self._root(self._graph.outputs[0])}
        blocks: list[tuple[int, int, int, tuple[str, int]]] = []  # size, first step, last step, what it is
        for index, step in enumerate(self.steps):
            blocks.append((buffer_sizes[index], index, index, ("buffer", index)))
            if step.output not in ends:
                last = max((at for at, one in enumerate(self.steps) if step.output in one.inputs), default=index)
                blocks.append((math.prod(self._tensors[step.output].shape), index, last, ("tensor", step.output)))
        placed: list[tuple[int, int, int, int]] = []
        found: dict[tuple[str, int], int] = {}
        for size, first, last, what in sorted(blocks, key=lambda block: -block[0]):
            offset = 0
            for begin, end, other_first, other_last in sorted(placed):
                if other_first <= last and first <= other_last and begin < offset + size and offset < end:
                    offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            placed.append((offset, offset + size, first, last))
            found[what] = offset
        tensors = {index: offset for (kind, index), offset in found.items() if kind == "tensor"}
        return (
            tensors,
            [found["buffer", index] for index in range(len(self.steps))],
            max(end for _, end, _, _ in placed),
        )

    def _root(self, index: int) -> int:
        while index in self._same:
            index = self._same[index]
        return index

    def _add(self, operator: Operator) -> None:
        writers: dict[str, Callable[[Operator], Step]] = {
            "CONV_2D": self._convolution,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._dense,
            "ADD": self._addition,
            "AVERAGE_POOL_2D": self._pool,
            "MAX_POOL_2D": self._pool,
            "MEAN": self._mean,
            "SOFTMAX": self._softmax,
        }
        source, target = operator.inputs[0], operator.outputs[0]
        if operator.kind == "RESHAPE":
            self._same[target] = source
        elif operator.kind == "PAD" and _pads_pixels(operator):
            (top, _), (left, _) = operator.attributes["paddings"][1:3]
            self._padded[target] = (source, (top, left))
        elif operator.kind in writers:
            self.steps.append(writers[operator.kind](operator))
        else:
            raise _refusal(operator, "no such operator here")

    def _convolution(self, operator: Operator) -> Step:
        return self._filter(operator, "arm_convolve_wrapper_s8", "cmsis_nn_conv_params", "")

    def _depthwise(self, operator: Operator) -> Step:
        multiplier = f"{operator.attributes['depth_multiplier']}, "
        return self._filter(operator, "arm_depthwise_conv_wrapper_s8", "cmsis_nn_dw_conv_params", multiplier)

    def _filter(self, operator: Operator, function: str, kind: str, depth_multiplier: str) -> Step:
        index, before = self._padded.get(operator.inputs[0], (operator.inputs[0], None))
        weights = self._tensors[operator.inputs[1]]
        source, target = (_as_image(self._tensors[one].shape) for one in (index, operator.outputs[0]))
        window, strides, dilations = (
            weights.shape[1:3],
            operator.attributes["strides"],
            operator.attributes["dilations"],
        )
        same = padding_before(operator, source, target, window)
        if before is not None and operator.attributes["padding"] == "SAME" and same != (0, 0):
            raise _refusal(operator, "padded twice")
        tiles = ", ".join(f"{{{w}, {h}}}" for h, w in (strides, before or same, dilations))
        params = f"{self._offsets(index, operator.outputs[0], depth_multiplier)}, {tiles}, {self._limits(operator)}"
        return self._kernel_step(operator, function, kind, params, source, weights.shape, target, index)

    def _dense(self, operator: Operator) -> Step:
        """As a 1x1 convolution: CMSIS-NN 4.0.0 has one scale only for a dense layer, and files have one per channel."""
        num_outputs, num_inputs = self._tensors[operator.inputs[1]].shape
        rows = math.prod(self._tensors[operator.inputs[0]].shape) // num_inputs
        offsets = self._offsets(operator.inputs[0], operator.outputs[0], "")
        params = f"{offsets}, {{1, 1}}, {{0, 0}}, {{1, 1}}, {self._limits(operator)}"
        shapes = (1, 1, rows, num_inputs), (num_outputs, 1, 1, num_inputs), (1, 1, rows, num_outputs)
        return self._kernel_step(
            operator, "arm_convolve_wrapper_s8", "cmsis_nn_conv_params", params, *shapes, operator.inputs[0]
        )

    def _kernel_step(
        self,
        operator: Operator,
        function: str,
        kind: str,
        params: str,
        source: Sequence[int],
        window: Sequence[int],
        target: Sequence[int],
        index: int,
    ) -> Step:
        name, number = f"_{operator.index}", operator.index
        weights = self._tensors[operator.inputs[1]]
        scales = self._scale(index) * weights.scales / self._scale(operator.outputs[0])
        pairs = [quantize_multiplier(scale) for scale in np.broadcast_to(scales, target[-1:])]
        bias = np.zeros(target[-1], np.int32)
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            bias = self._tensors[operator.inputs[2]].data
        constants = [
            _array("int8_t", f"weights{name}", weights.data),
            _array("int32_t", f"bias{name}", bias),
            _array("int32_t", f"multipliers{name}", [multiplier for multiplier, _ in pairs]),
            _array("int32_t", f"shifts{name}", [shift for _, shift in pairs]),
            f"static const {kind} params{name} = {{{params}}};",
            f"static const cmsis_nn_per_channel_quant_params scales{name} = "
            f"{{(int32_t *)multipliers{name}, (int32_t *)shifts{name}}};",
        ]
        for what, shape in (("in", source), ("filter", window), ("bias", (1, 1, 1, target[-1])), ("out", target)):
            constants.append(f"static const cmsis_nn_dims {what}_dims{name} = {{{', '.join(map(str, shape))}}};")
        call = (
            f"    const cmsis_nn_context context = {{buffer}};\n"
            f"    if ({function}(&context, &params_{number}, &scales_{number}, &in_dims_{number}, {{0}}, "
            f"&filter_dims_{number}, weights_{number}, &bias_dims_{number}, bias_{number}, &out_dims_{number}, "
            f"{{out}})) __builtin_trap();\n"
        )
        dims = f"&in_dims{name}, &filter_dims{name}, &out_dims{name}"
        size = f"{function}_get_buffer_size(&params{name}, {dims})"
        return Step(call, [self._root(index)], operator.outputs[0], constants, size)

    def _addition(self, operator: Operator) -> Step:
        first, second, output = (self._tensors[index] for index in (*operator.inputs, *operator.outputs))
        if first.data is not None or second.data is not None or not first.shape == second.shape == output.shape:
            raise _refusal(operator, "a constant, or shapes that differ")
        largest = 2 * max(first.scales[0], second.scales[0])
        left_shift = 20
        numbers: list[object] = ["{0}", "{1}"]
        for tensor in (first, second):
            numbers += [-tensor.zero_point, *quantize_multiplier(tensor.scales[0] / largest)]
        last = quantize_multiplier(largest / ((1 << left_shift) * output.scales[0]))
        numbers += [left_shift, "{out}", output.zero_point, *last, *self._range(operator), math.prod(output.shape)]
        function = self._choose("arm_elementwise_add_s8", "plain_add", "ADD")
        call = f"    {function}({', '.join(map(str, numbers))});\n"
        return Step(call, [self._root(index) for index in operator.inputs], operator.outputs[0])

    def _pool(self, operator: Operator) -> Step:
        name = f"_{operator.index}"
        function = "arm_avgpool_s8" if operator.kind == "AVERAGE_POOL_2D" else "arm_max_pool_s8"
        index, output = operator.inputs[0], operator.outputs[0]
        source, target = self._tensors[index].shape, self._tensors[output].shape
        window, strides = operator.attributes["window"], operator.attributes["strides"]
        before = padding_before(operator, source, target, window)
        tiles = ", ".join(f"{{{w}, {h}}}" for h, w in (strides, before))
        constants = [f"static const cmsis_nn_pool_params params{name} = {{{tiles}, {self._limits(operator)}}};"]
        for what, shape in (("in", source), ("filter", (1, *window, 1)), ("out", target)):
            constants.append(f"static const cmsis_nn_dims {what}_dims{name} = {{{', '.join(map(str, shape))}}};")
        call = (
            f"    const cmsis_nn_context context = {{buffer}};\n"
            f"    if ({function}(&context, &params{name}, &in_dims{name}, {{0}}, &filter_dims{name}, &out_dims{name}, "
            f"{{out}})) __builtin_trap();\n"
        )
        size = f"arm_avgpool_s8_get_buffer_size({target[2]}, {source[3]})" if "avg" in function else _NO_BUFFER
        return Step(call, [self._root(index)], output, constants, size)

    def _mean(self, operator: Operator) -> Step:
        """TFLite scales and divides in one multiplier; CMSIS-NN's average pool rounds in between."""
        source, target = self._tensors[operator.inputs[0]], self._tensors[operator.outputs[0]]
        if len(source.shape) != 4 or operator.attributes.get("axes") != (1, 2):
            raise _refusal(operator, f"axes {operator.attributes.get('axes')} of {source.shape}")
        pixels = source.shape[1] * source.shape[2]
        multiplier, shift = quantize_multiplier(source.scales[0] / target.scales[0])
        bits = min(pixels.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << bits) // pixels, shift - bits
        self.plain.add("MEAN")
        numbers = ["{0}", pixels, source.shape[3], source.zero_point, multiplier, shift, target.zero_point, "{out}"]
        call = f"    plain_mean({', '.join(map(str, numbers))});\n"
        return Step(call, [self._root(operator.inputs[0])], operator.outputs[0])

    def _softmax(self, operator: Operator) -> Step:
        source = self._tensors[operator.inputs[0]]
        integer_bits = 5
        scale = min(source.scales[0] * operator.attributes.get("beta", 1.0) * (1 << (31 - integer_bits)), 2**31 - 1)
        multiplier, shift = quantize_multiplier(scale)
        radius = math.floor(((1 << integer_bits) - 1) * (1 << (31 - integer_bits)) / (1 << shift))
        rows, size = math.prod(source.shape[:-1]), source.shape[-1]
        function = self._choose("arm_softmax_s8", "plain_softmax", "SOFTMAX")
        call = f"    {function}({{0}}, {rows}, {size}, {multiplier}, {shift}, {-radius}, {{out}});\n"
        return Step(call, [self._root(operator.inputs[0])], operator.outputs[0])

    def _choose(self, theirs: str, plain: str, kind: str) -> str:
        if has_function(self._sources, theirs):
            return theirs
        self.plain.add(kind)
        return plain

    def _scale(self, index: int) -> float:
        return float(self._tensors[index].scales[0])

    def _offsets(self, source: int, target: int, depth_multiplier: str) -> str:
        return f"{-self._tensors[source].zero_point}, {self._tensors[target].zero_point}, {depth_multiplier}".rstrip(
            ", "
        )

    def _limits(self, operator: Operator) -> str:
        least, largest = self._range(operator)
        return f"{{{least}, {largest}}}"

    def _range(self, operator: Operator) -> tuple[int, int]:
        activation = operator.attributes.get("activation", "NONE")
        ranges = {"NONE": (-math.inf, math.inf), "RELU": (0, math.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}
        if activation not in ranges:
            raise _refusal(operator, f"activation {activation}")
        output = self._tensors[operator.outputs[0]]
        least, largest = (
            output.zero_point + np.float32(end) / np.float32(output.scales[0]) for end in ranges[activation]
        )
        return int(max(-128, np.round(least))), int(min(127, np.round(largest)))


def _pads_pixels(operator: Operator) -> bool:
    paddings = operator.attributes.get("paddings", ())
    return len(paddings) == 4 and paddings[0] == paddings[3] == (0, 0)


def _as_image(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 4 or shape[0] != 1:
        raise InputError(f"A convolution must have one image of rank 4. Received: {tuple(shape)}")
    return tuple(shape)


def _array(kind: str, name: str, values: Sequence[int] | np.ndarray | None) -> str:
    numbers = np.asarray(values).reshape(-1).tolist()
    return f"static const {kind} {name}[{len(numbers)}] = {{{', '.join(map(str, numbers))}}};"


def _refusal(operator: Operator, reason: str) -> InputError:
    return InputError(
        f"A file must use operators as they are written here to be compared with CMSIS-NN. "
        f"Received: {operator.kind} ({operator.name}): {reason}"
    )
