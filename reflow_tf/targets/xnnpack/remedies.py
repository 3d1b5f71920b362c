"""A rule of XNNPACK that a node breaks, in words: what is so, what is needed, and what would change it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph, Value
from reflow_tf.targets.xnnpack.layouts import Rule
from reflow_tf.targets.xnnpack.nodes import Node

EXACT = "--rewrite=exact does it without changing the outputs"
_RETRAIN = "and train again"
_NONE = "no remedy in this runtime: replace the layer, and train again"


def promise(graph: OperatorGraph, by_hand: str) -> str:
    """`EXACT`, or what to do by hand in a network that rewriting leaves alone: no cluster could begin in it."""
    return EXACT if any(_is_stem(graph, operator) for operator in graph.operators) else by_hand


def _is_stem(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether rewriting would let a cluster begin here, whatever its padding."""
    if operator.kind != "CONV_2D" or operator.attributes["strides"] != (2, 2):
        return False
    data, weights = (graph.values[index] for index in operator.inputs[:2])
    return weights.shape[1:] == (3, 3, 3) and data.shape[3] == 3 and data.dtype.startswith("float")


class Words(NamedTuple):
    """Both halves of a blocker."""

    reason: str
    remedy: str


def describe(graph: OperatorGraph, node: Node, values: tuple[Value, ...], rule: Rule, begins: bool) -> Words:
    """Why a node cannot be part of a cluster.

    Args:
        graph: the network.
        node: it breaks the rule.
        values: those of its subgraph.
        rule: from `check_layout`.
        begins: no convolution comes before it, so that the cluster would begin here.
    """
    operator = node.operator
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and rule is not Rule.FLOAT:
        return _describe_convolution(graph, node, rule, begins)
    words: Mapping[Rule, Callable[[], Words]] = {
        Rule.FLOAT: lambda: _describe_type(graph, operator),
        Rule.RANK: lambda: _describe_operands(graph, operator),
        Rule.CONSTANT: lambda: _describe_operands(graph, operator),
        Rule.SIZE: lambda: Words(
            "resizes an image that is one pixel high or wide; needs more", "broadcast it with an ADD or MUL instead"
        ),
        Rule.KIND: lambda: describe_kind(graph, operator),
    }
    return words[rule]()


def _describe_convolution(graph: OperatorGraph, node: Node, rule: Rule, begins: bool) -> Words:
    operator = node.operator
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    shape = graph.values[operator.inputs[1]].shape
    size, strides = f"{shape[1]}x{shape[2]}", operator.attributes["strides"]
    stride = strides[0] if strides[0] == strides[1] else strides
    if not depthwise and shape[1:3] != (1, 1) and not begins and rule in (Rule.KERNEL, Rule.STRIDES, Rule.CHANNELS):
        return Words(
            f"{size} convolution; behind the first one only 1x1 and depthwise convolutions stay in a cluster",
            f"replace it by a depthwise {size} and a 1x1 convolution, {_RETRAIN}",
        )
    if rule is Rule.PADDING:
        return _describe_padding(graph, node)
    if rule is Rule.DILATION:
        return Words(f"dilation {operator.attributes['dilations']}; needs 1", f"no remedy: leave it out, {_RETRAIN}")
    if rule is Rule.GROUPS:
        return Words("grouped convolution; needs one group", f"replace it by an ungrouped one, {_RETRAIN}")
    if rule is Rule.MULTIPLIER:
        times = operator.attributes["depth_multiplier"]
        return Words(
            f"depth multiplier {times}; needs 1",
            f"a 1x1 convolution before it that copies each channel {times} times computes the same",
        )
    if rule is Rule.CHANNELS:
        return _describe_channels(shape[3])
    if depthwise:
        needed = "strides of 1 or 2" if rule is Rule.STRIDES else "3x3 or 5x5"
        found = f"stride {stride}" if rule is Rule.STRIDES else f"{size} depthwise convolution"
        return Words(f"{found}; needs {needed}", f"change the layer, {_RETRAIN}")
    if shape[1:3] == (1, 1):
        return Words(
            f"1x1 convolution with stride {stride}; needs 1",
            f"a depthwise 3x3 convolution with stride {stride} and padding 1 whose kernel is a 1 in the middle, then "
            "the 1x1 convolution with stride 1, computes the same",
        )
    found = f"stride {stride}" if rule is Rule.STRIDES else f"{size} kernel"
    needed = "2" if rule is Rule.STRIDES else "3x3"
    return Words(
        f"{found}; the convolution that begins a cluster needs {needed}",
        f"begin the network with a 3x3 convolution with stride 2, {_RETRAIN}",
    )


def _describe_channels(channels: int) -> Words:
    if channels < 3:
        remedy = f"feed 3 channels, {3 - channels} of them zero, with zeros in the kernel: it computes the same"
    else:
        remedy = f"begin the network with a 3x3 convolution of 3 channels with stride 2, {_RETRAIN}"
    return Words(f"reads {channels} channel{'s' if channels > 1 else ''}; needs 3", remedy)


def _describe_padding(graph: OperatorGraph, node: Node) -> Words:
    operator = node.operator
    kernel = graph.values[operator.inputs[1]].shape[1]
    need = kernel // 2
    if node.padding is not None and (pad := _pad_before(graph, operator)) and pad.outputs[0] == node.inputs[0]:
        own = "give each convolution a PAD of its own, of height and width alone"
        enough = pad.attributes.get("paddings") == ((0, 0), (need, need), (need, need), (0, 0))
        return Words(
            "the PAD before it is not taken in as its padding, because it is read elsewhere or pads channels",
            promise(graph, own) if enough else own,
        )
    if kernel == 1:
        return Words("1x1 convolution of a padded image; needs no padding", f"leave the padding out, {_RETRAIN}")
    if node.padding is None:
        sides = _same_padding(graph, operator)
        if set(sides) == {need}:
            words = f"padding SAME, which XNNPACK does not read as {need} on every side"
            return Words(words, promise(graph, f"pad {need} on every side with ZeroPadding2D: it computes the same"))
        shiftable = True
    else:
        top, right, bottom, left = node.padding
        sides = (top, bottom, left, right)
        height, width = graph.values[node.inputs[0]].shape[1:3]
        even = operator.attributes["strides"] == (2, 2) and height % 2 == width % 2 == 0
        shiftable = even and all(before + after == 2 * need - 1 for before, after in (sides[:2], sides[2:]))
    words = f"padding {_compact(sides)}; needs {need} on every side"
    if shiftable and (other := _find_symmetric(graph)):
        return Words(words, f"pad it as {other.name} already is, {need} on every side (other outputs: train again)")
    by_hand = f"pad {need} on every side (other outputs: train again)"
    return Words(words, promise(graph, by_hand) if shiftable else by_hand)


def _pad_before(graph: OperatorGraph, operator: Operator) -> Operator | None:
    pads = (other for other in graph.operators if other.kind == "PAD")
    return next((pad for pad in pads if operator.inputs[0] in pad.outputs), None)


def _find_symmetric(graph: OperatorGraph) -> Operator | None:
    """A convolution with stride 2 whose padding a mirror image would spoil: symmetric, on an even size.

    All of a network is turned or nothing of it, so then the others cannot be mended that way.
    """
    for operator in graph.operators:
        if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or operator.attributes["strides"] != (2, 2):
            continue
        pad = _pad_before(graph, operator)
        if pad is None or operator.attributes["padding"] != "VALID" or len(pad.attributes.get("paddings", ())) != 4:
            continue
        sizes = graph.values[pad.inputs[0]].shape[1:3]
        paddings = pad.attributes["paddings"][1:3]
        need = graph.values[operator.inputs[1]].shape[1] // 2
        if need and any(size % 2 == 0 and pads == (need, need) for size, pads in zip(sizes, paddings, strict=True)):
            return operator
    return None


def _compact(sides: tuple[int, int, int, int]) -> str:
    return f"({','.join(map(str, sides))})" if len(set(sides)) > 1 else f"{sides[0]} on every side"


def _same_padding(graph: OperatorGraph, operator: Operator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) as TensorFlow computes it at run time."""
    sides: list[int] = []
    kernel = graph.values[operator.inputs[1]].shape[1:3]
    sizes = graph.values[operator.inputs[0]].shape[1:3]
    attributes = operator.attributes
    for size, window, stride, dilation in zip(
        sizes, kernel, attributes["strides"], attributes["dilations"], strict=True
    ):
        reach = (window - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


def _describe_type(graph: OperatorGraph, operator: Operator) -> Words:
    used = [graph.values[index].dtype for index in (*operator.inputs[:1], *operator.outputs)]
    other = next((dtype for dtype in used if not dtype.startswith("float")), None)
    filters = next((graph.values[index].dtype for index in operator.inputs[1:2] if index != ABSENT), "float32")
    found, wanted = f"{other or used[0]} values", "float32 and float16"
    if other is None and not filters.startswith("float"):  # dynamic range quantization
        found, wanted = f"{filters} filters, though the values are {used[0]}", "float32 and float16 filters"
    return Words(
        f"{found}; sparse kernels exist for {wanted} only",
        "no remedy: export with --quantize=none or --quantize=float16",
    )


def _describe_operands(graph: OperatorGraph, operator: Operator) -> Words:
    operands = [graph.values[index] for index in operator.inputs if index != ABSENT]
    constants = [value for value in operands if value.constant]
    if constants and len(operands) == 2:
        (constant, *_) = constants
        if sum(size != 1 for size in constant.shape) > 1 or constant.shape[-3:-1] not in ((), (1,), (1, 1)):
            return Words(
                f"{operator.kind} with a constant of shape {constant.shape}; needs one number, or one for each channel",
                _NONE,
            )
        second = "" if operands[0].constant else " as the second input"
        found = f"{operator.kind} with a constant of rank {len(constant.shape)}{second}"
        by_hand = "store it with four dimensions, as the first input"
        return Words(f"{found}; needs rank 4, and the constant first", promise(graph, by_hand))
    ranks = " and ".join(str(len(value.shape)) for value in operands)
    return Words(f"{operator.kind} of rank {ranks}; needs 4", "keep all four dimensions (keepdims=True)")


def describe_kind(graph: OperatorGraph, operator: Operator) -> Words:
    """Why operators of this kind never are in a cluster."""
    kind = operator.kind
    if kind == "RESHAPE":
        return _describe_reshape(graph, operator)
    if kind == "FULLY_CONNECTED":
        return Words(
            "FULLY_CONNECTED flattens its input",
            "use 1x1 convolutions of a mean with keepdims=True instead of Dense",
        )
    if averages_map(graph, operator):
        by_hand = "GlobalAveragePooling2D computes the same with the same weights"
        return Words("AVERAGE_POOL_2D ends no cluster, even of the whole image", promise(graph, by_hand))
    remedies = {
        "SUB": "an ADD of the NEG of what is subtracted computes the same",
        "DIV": "a MUL by the reciprocal does the same, if the divisor is constant",
        "CONCATENATION": f"no remedy in this runtime: add instead of concatenating, {_RETRAIN}",
        "MAX_POOL_2D": f"let a depthwise convolution with stride 2 do it, {_RETRAIN}",
        "AVERAGE_POOL_2D": f"let a depthwise convolution do it, {_RETRAIN}",
        "PAD": "let the convolution pad, or pad just before one that has no padding of its own",
    }
    return Words(f"{kind} is never part of a cluster", remedies.get(kind, _NONE))


def averages_map(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether an operator is an average pooling whose one window sees the whole map."""
    if operator.kind != "AVERAGE_POOL_2D" or graph.values[operator.outputs[0]].shape[1:3] != (1, 1):
        return False
    sizes, window = graph.values[operator.inputs[0]].shape[1:3], operator.attributes["window"]
    return all(size <= reach for size, reach in zip(sizes, window, strict=True))


def _describe_reshape(graph: OperatorGraph, operator: Operator) -> Words:
    source, target = graph.values[operator.inputs[0]], graph.values[operator.outputs[0]]
    maker = next((other for other in graph.operators if source.index in other.outputs), None)
    if maker and maker.kind == "MEAN" and len(target.shape) == 4 and target.shape[1:3] == (1, 1):
        reason = "brings back the height and width that a MEAN dropped; the MEAN must keep them"
        return Words(reason, promise(graph, "average with keepdims=True, and use 1x1 convolutions instead of Dense"))
    return Words(f"RESHAPE from {source.shape} to {target.shape} is never part of a cluster", _NONE)


def describe_refusal(operator: Operator, refusal: str) -> Words:
    """Words for an operator that the delegate leaves to TFLite."""
    if operator.kind in ("REVERSE_V2", "GATHER"):
        return Words(refusal, "move it before the first convolution")
    if "float16" in refusal:
        return Words(refusal, "store weights and bias in the same type: stored sparse, its weights are unpacked wrong")
    if "bias" in refusal:
        return Words(refusal, "give it a bias of zeros")
    return Words(refusal, _NONE)
