"""Channels removed: which groups lose how many, and which ones, for a share of the network's multiply-adds.

What a channel's removal costs is what the kernels that read it cannot make up for with the channels that are left
(`sparsity.channels`), weighed by what errors of their outputs do to the prediction (`fisher.gather_output_fisher`) and
by how much more errors cost that are the same all over an image (`fisher.gather_coherence`), as those of a missing
channel are. So it is in nats, of every group, and widths can be chosen by it (`sparsity.widths`).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.data.portions import take_first
from reflow_tf.errors import InputError
from reflow_tf.models.channels.groups import ChannelGroup, ChannelReading, collect_groups, read_channels
from reflow_tf.models.channels.narrowing import Kept, narrow
from reflow_tf.models.channels.rotation import spread_streams
from reflow_tf.models.execution import CHUNK, read_steps
from reflow_tf.models.fisher import MOST_OUTPUTS, believe, gather_coherence, gather_output_fisher
from reflow_tf.models.gram import find_patches
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.observation import check_batch, run, without_activation
from reflow_tf.models.walking import walk
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.layer_fitting import LayerSums, RunningSums, sum_up
from reflow_tf.sparsity.channels import Elimination, Reader, eliminate
from reflow_tf.sparsity.layers import Kind, LayerSpec, Skipped
from reflow_tf.sparsity.widths import Axis, Width, Workload, choose_widths, count_macs

MOST_GATHERED = 512
"""Calibration inputs that say what readers can make up for."""
MOST_GRADED = 128
"""Those that say what errors do to the prediction."""
JUDGED_EVERY = 4
"""One part in so many of those judges what readers that were refitted to the others miss."""
CLOSE = 2e-5
"""How far a narrower model may be from the masked one, as a share of the largest output: it sums in another order."""
MOST_READ = 8192
"""Numbers that one output of a reader multiplies: the Gram of so many is half a gigabyte."""


@dataclasses.dataclass(frozen=True)
class NarrowedGroup:
    """Channels that stand and fall together.

    Attributes:
        writers: paths of the kernels that give them.
        readers: of those that take them.
        size: how many there are.
        width: how many stay.
        loss: what that was estimated to cost the prediction, in nats, before anything is refitted to images.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int
    width: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """What is removed.

    Attributes:
        kept: as `models.channels.narrowing` takes it.
        groups: those that could lose channels.
        held: what could not, by the first kernel that gives it, and why.
        macs_before: multiply-adds of the network's kernels.
        macs_after: with the channels that stay.
    """

    kept: Mapping[int, np.ndarray]
    groups: tuple[NarrowedGroup, ...]
    held: tuple[Skipped, ...]
    macs_before: int
    macs_after: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A group that may lose channels.

    Attributes:
        position: in `find_channel_groups`.
        group: itself.
        writers: the kernels that give its channels.
        readers: those that take them, with the places where they begin along the kernel's inputs.
    """

    position: int
    group: ChannelGroup
    writers: tuple[LayerSpec, ...]
    readers: tuple[tuple[LayerSpec, tuple[int, ...]], ...]


def find_candidates(model: keras.Model) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """The groups that may lose channels, and what the others are held by."""
    reading, kernels = read_channels(model), find_kernels(model)
    owners = {place.path: place.layer for place in walk(model)}
    calls = Counter(id(call.operation) for call in reading.graph.calls)
    found, held = [], []
    for position, group in enumerate(collect_groups(reading.numberings).values()):
        candidate = _read_group(position, group, kernels)
        if not candidate.writers:
            continue  # the network's inputs, or what only batch norms number
        reason = group.frozen or _find_obstacle(candidate, owners, calls)
        if reason is None:
            found.append(candidate)
        else:
            held.append(Skipped(candidate.writers[0].path, reason))
    return tuple(found), tuple(held)


@dataclasses.dataclass(frozen=True)
class GroupCost:
    """What the channels of a group cost together.

    Attributes:
        writers: paths of the kernels that give them.
        readers: of those that take them.
        size: how many they are.
        macs: multiply-adds of the network that they take part in.
        num_weights: that number them.
        num_values: of the largest tensor that they are in, of one input: what one byte, or four, each cost in RAM.
        held: why they must stay; None: they may go.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int
    macs: int
    num_weights: int
    num_values: int
    held: str | None


def measure_groups(model: keras.Model) -> tuple[GroupCost, ...]:
    """Every group that a kernel gives, in the order in which they are met.

    Args:
        model: a functional or sequential model.

    Raises:
        InputError: the model is subclassed.
    """
    read_steps(model)
    reading, kernels = read_channels(model), find_kernels(model)
    groups = collect_groups(reading.numberings)
    every = [_read_group(position, group, kernels) for position, group in enumerate(groups.values())]
    found, held = find_candidates(model)
    reasons = {each.path: each.reason for each in held}
    movable = {candidate.position for candidate in found}
    workloads = _find_workloads(model, every)
    full = [candidate.group.size for candidate in every]
    costs = []
    for root, candidate in zip(groups, every, strict=True):
        if not candidate.writers:
            continue
        without = [*full[: candidate.position], 0, *full[candidate.position + 1 :]]
        tensors = [tensor for tensor in reading.layouts if root in (reading.roots(tensor) or ())]
        positions = [math.prod(size or 1 for size in reading.graph.shapes[tensor][1:-1]) for tensor in tensors]
        costs.append(
            GroupCost(
                tuple(spec.path for spec in candidate.writers),
                tuple(spec.path for spec, _ in candidate.readers),
                candidate.group.size,
                count_macs(workloads, full) - count_macs(workloads, without),
                _count_weights(candidate.group),
                candidate.group.size * max(positions, default=0),
                None if candidate.position in movable else reasons[candidate.writers[0].path],
            )
        )
    return tuple(costs)


def _count_weights(group: ChannelGroup) -> int:
    per_channel = (math.prod(span.variable.shape) // span.variable.shape[span.axis] for span in group.spans)
    return group.size * sum(per_channel)


def require_candidates(model: keras.Model) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """`find_candidates`.

    Raises:
        InputError: there are none.
    """
    read_steps(model)  # which says why of what it cannot go through step by step
    candidates, held = find_candidates(model)
    if not candidates:
        raise InputError(
            "--max_macs needs channels that may go. Received: a network in which all stay: "
            + ("; ".join(f"{each.path} {each.reason}" for each in held[:3]) or "nothing is known of its channels")
        )
    return candidates, held


def choose_channels(
    model: keras.Model, share: float, batches: Iterable[np.ndarray], progress: Progress, *, multiple: int = 8
) -> Narrowing:
    """Which channels stay where the network may have so much of its multiply-adds; the model is left as it was.

    Args:
        model: a functional or sequential model.
        share: of its multiply-adds, in (0, 1].
        batches: float arrays (n, ...), of which the first MOST_GATHERED inputs are looked at.
        progress: wraps what is done one by one.
        multiple: of which number every width is, unless it stays what it is.

    Raises:
        InputError: no group may lose channels; the share cannot be met; the model is subclassed; bad inputs.
    """
    candidates, held = require_candidates(model)
    images = take_first(batches, MOST_GATHERED)
    check_batch(model, images)
    workloads = _find_workloads(model, candidates)
    prices = _Prices(model, candidates, images, progress)
    eliminations = [prices.eliminate(candidate) for candidate in progress(candidates, "Weighing channels")]
    widths = choose_widths(
        [Width(c.group.size, e.losses, multiple) for c, e in zip(candidates, eliminations, strict=True)],
        workloads,
        share,
    )
    kept, groups = {}, []
    for candidate, elimination, width in zip(candidates, eliminations, widths, strict=True):
        gone = candidate.group.size - width
        if gone:
            kept[candidate.position] = np.sort(elimination.order[gone:])
        groups.append(
            NarrowedGroup(
                tuple(spec.path for spec in candidate.writers),
                tuple(spec.path for spec, _ in candidate.readers),
                candidate.group.size,
                width,
                float(elimination.losses[gone]),
            )
        )
    full = [candidate.group.size for candidate in candidates]
    return Narrowing(kept, tuple(groups), held, count_macs(workloads, full), count_macs(workloads, widths))


def _read_group(position: int, group: ChannelGroup, kernels: KernelMap) -> Candidate:
    specs = {id(kernels.variables[spec.path]): spec for spec in kernels.specs}
    writers: dict[str, LayerSpec] = {}
    readers: dict[str, tuple[LayerSpec, list[int]]] = {}
    for span in group.spans:
        spec = specs.get(id(span.variable))
        if spec is None or spec.kind is Kind.DEPTHWISE_CONV:
            continue
        if span.axis in spec.input_axes:
            readers.setdefault(spec.path, (spec, []))[1].append(span.start)
        else:
            writers[spec.path] = spec
    return Candidate(
        position, group, tuple(writers.values()), tuple((spec, tuple(starts)) for spec, starts in readers.values())
    )


def _find_obstacle(candidate: Candidate, owners: Mapping[str, keras.Layer], calls: Counter[int]) -> str | None:
    if candidate.group.size == 1:
        return "is one channel"
    if not candidate.readers:
        return "is read by no kernel"
    for spec, _ in candidate.readers:
        layer, name = owners[spec.path.rpartition("/")[0]], spec.path.rpartition("/")[2]
        if find_patches(layer, name) is None:
            return f"is read by {spec.path} ({type(layer).__name__}), for which there is no rule of least squares"
        if calls[id(layer)] > 1:
            return f"is read by {spec.path}, which is used several times"
        if spec.num_weights // spec.canonical_shape[0] > MOST_READ or spec.canonical_shape[0] > MOST_OUTPUTS:
            return f"is read by {spec.path}, whose shape {spec.shape} is too large for least squares"
    return None


def _find_workloads(model: keras.Model, candidates: Sequence[Candidate]) -> list[Workload]:
    """Multiply-adds of every kernel, by the candidates' widths."""
    reading, kernels = read_channels(model), find_kernels(model)
    owners = {place.path: place.layer for place in walk(model)}
    spans: dict[int, list[tuple[int, int]]] = {}
    for number, candidate in enumerate(candidates):
        for span in candidate.group.spans:
            spans.setdefault(id(span.variable), []).append((span.axis, number))
    workloads = []
    for spec in kernels.specs:
        numbered = spans.get(id(kernels.variables[spec.path]), [])
        axes = []
        for axis, size in enumerate(spec.shape):
            groups = tuple(number for on, number in numbered if on == axis)
            axes.append(Axis(size - sum(candidates[number].group.size for number in groups), groups))
        workloads.append(Workload(_count_positions(owners[spec.path.rpartition("/")[0]], reading), tuple(axes)))
    return workloads


def _count_positions(layer: keras.Layer, reading: ChannelReading) -> int:
    """At how many positions the layer's kernel is used, in all its calls; an open size counts as 1."""
    is_transposed = type(layer).__name__.endswith("Transpose")
    total = 0
    for call in reading.graph.calls:
        if call.operation is layer:
            shape = reading.graph.shapes[(call.inputs if is_transposed else call.outputs)[0]]
            total += math.prod(size or 1 for size in shape[1:-1])
    return total or 1


class _Prices:
    """What readers can make up for, and what their errors cost."""

    def __init__(self, model: keras.Model, candidates: Sequence[Candidate], images: np.ndarray, progress: Progress):
        specs = {spec.path: spec for candidate in candidates for spec, _ in candidate.readers}
        self._kernels = find_kernels(model).read()
        # Parts of the same size, one of which judges: neighbours in a folder are often of a kind.
        judges = np.arange(len(images)) // CHUNK % JUDGED_EVERY == JUDGED_EVERY - 1
        if not judges.any() or judges.all():
            judges = np.arange(len(images)) % JUDGED_EVERY == JUDGED_EVERY - 1
        self._fitted, self._judging = (_gather_sums(model, specs, images[part], progress) for part in (~judges, judges))
        owners = {place.path: place.layer for place in walk(model)}
        layers = {path.rpartition("/")[0]: owners[path.rpartition("/")[0]] for path in specs}
        graded = images[~judges][:MOST_GRADED], images[judges][:MOST_GRADED]
        self._fishers = [gather_output_fisher(model, layers, part) for part in graded]
        self._coherence = gather_coherence(model, tuple(specs), graded[0])

    def eliminate(self, candidate: Candidate) -> Elimination:
        return eliminate([self._read(spec, starts, candidate.group.size) for spec, starts in candidate.readers])

    def _read(self, spec: LayerSpec, starts: tuple[int, ...], size: int) -> Reader:
        kernel = self._kernels[spec.path].astype(np.float64)
        outputs, inputs = kernel.shape[0], kernel.shape[-1]
        (gram,) = self._fitted[spec.path].regularize(kernel).regularized.gram
        (judging,) = self._judging[spec.path].weigh(self._coherence[spec.path]).gram
        taps = len(gram) // inputs
        begins = (np.arange(taps)[:, None] * inputs + np.array(starts)).ravel()
        places = np.arange(size)[:, None] + begins  # of a channel that is read in several places, all of them
        rows = kernel.reshape(outputs, -1)
        fitted, judged = (
            _find_root(fisher.get(spec.path.rpartition("/")[0]), outputs) @ rows for fisher in self._fishers
        )
        return Reader(fitted, judged, gram, judging, places)


def _find_root(fisher: np.ndarray | None, outputs: int) -> np.ndarray:
    """A root of what errors of two outputs cost together, in nats; 0 where the prediction does not depend on it."""
    if fisher is None or len(fisher) != outputs:
        return np.zeros((1, outputs))
    values, vectors = np.linalg.eigh(believe(fisher) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))).T


def _gather_sums(
    model: keras.Model, specs: Mapping[str, LayerSpec], images: np.ndarray, progress: Progress
) -> dict[str, LayerSums]:
    """Path -> the normal equations of a kernel that is to compute what it computes."""
    steps, kernels = read_steps(model), find_kernels(model)
    wanted = {id(kernels.variables[path]): spec for path, spec in specs.items()}
    found: dict[str, RunningSums] = {}
    for start in progress(range(0, len(images), CHUNK), "Watching what channels are read for"):
        ledger = Ledger(steps, {steps.input: tf.convert_to_tensor(images[start : start + CHUNK])})
        for step in steps:
            inputs = [ledger[tensor] for tensor in step.inputs]
            for variable in getattr(step.operation, "_trainable_variables", ()):
                if (spec := wanted.get(id(variable))) is not None:
                    with without_activation(step.operation):
                        targets = step.call(*inputs)
                    sums = sum_up(step.operation, spec, inputs[0], targets)
                    found[spec.path] = sums if spec.path not in found else found[spec.path] + sums
            ledger.enter(step, step.call(*inputs))
    return {path: sums.finish(path) for path, sums in found.items()}


def narrow_and_check(
    model: keras.Model, kept: Kept, batches: Iterable[np.ndarray], *, spread: bool = False
) -> keras.Model:
    """`models.channels.narrowing.narrow`, and proof on real inputs that it computes the same.

    Args:
        model: with the masks of these channels applied.
        kept: which channels stay.
        batches: float arrays (n, ...), of which the first few inputs are compared.
        spread: linear streams are put into a basis that int8 bears; see `rotation.spread_streams`.

    Raises:
        InputError: Keras cannot rebuild a layer with fewer channels.
    """
    narrower = narrow(model, kept)
    images = take_first(batches, MOST_GRADED)
    if spread:
        spread_streams(narrower, images)
    ((masked,), (found,)) = (list(run(each, [images[:CHUNK]])) for each in (model, narrower))
    difference, largest = float(np.abs(masked - found).max()), float(np.abs(masked).max())
    if not difference <= CLOSE * max(largest, 1.0):
        raise AssertionError(f"the narrower model differs by {difference:.3g} from the masked one, of {largest:.3g}")
    return narrower
