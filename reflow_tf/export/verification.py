"""Is every weight that a mask removed really zero in the file? Answered from the bytes, tensor by tensor."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.export.constants import StoredTensor, list_tensors, read_constants
from reflow_tf.targets.xnnpack.shortfall import is_ballast


@dataclasses.dataclass(frozen=True)
class MaskCheck:
    """What became of one mask.

    Attributes:
        path: the kernel's path, the key of its mask.
        tensor: name of the tensor in the file that holds the kernel; None where none does.
        num_masked: weights that the mask removed.
        num_extra_zeros: kept weights that are zero in the file all the same (a zero gamma that was folded in, rounding
            to float16 or int8, or a weight that was zero to begin with).
        storage: 'dense' or 'sparse'; None where `tensor` is.
        ok: a tensor was found, and every weight that the mask removed is zero in it.
        closest: where not ok: the nearest thing in the file, or that no tensor has the shape; else ''.
    """

    path: str
    tensor: str | None
    num_masked: int
    num_extra_zeros: int
    storage: str | None
    ok: bool
    closest: str = ""


@dataclasses.dataclass(frozen=True)
class _Miss:
    """A tensor of a mask's shape that is not zero where it should be."""

    violations: int
    tensor: str
    foreign_name: bool


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """A mask beside all tensors of its shape: those that it fits, best first, and the others."""

    edges: list["_Edge"]
    misses: list[_Miss]

    def describe_nearest(self, mask: np.ndarray) -> str:
        """Why the mask has no tensor."""
        if self.edges:
            return "every tensor that fits holds another mask"
        if not self.misses:
            return f"no tensor of the file has shape {mask.shape}"
        nearest = min(self.misses, key=lambda miss: (miss.violations, miss.tensor))
        return f"{nearest.tensor}: {nearest.violations} masked weights are not zero"


@dataclasses.dataclass(frozen=True)
class _Edge:
    """A mask that fits a tensor."""

    num_extra_zeros: int
    foreign_name: bool  # no part of the tensor's name is the layer's
    tensor: str


# A mask that keeps all fits every tensor of its shape, and rounding to int8 makes zeros of its own: names before zeros.
_LIKELIEST_FIRST: tuple[Callable[[_Edge], bool], ...] = (
    lambda edge: not edge.foreign_name and not edge.num_extra_zeros,
    lambda edge: not edge.foreign_name,
    lambda edge: not edge.foreign_name or not edge.num_extra_zeros,
    lambda edge: True,
)


def check_masks(content: bytes, masks: Mapping[str, np.ndarray]) -> tuple[MaskCheck, ...]:
    """Finds for each mask the tensor whose zeros it explains, each tensor used once.

    A tensor fits where every masked weight is zero. The converter may rename tensors and folds batch norms into them,
    so one that is called otherwise can be the right one: those that name the layer are given out first, exact fits
    before others, and as many masks as possible are served. The converter also keeps equal constants once, such as
    kernels in which nothing is kept: a mask that is left over shares the tensor of an equal one.

    Args:
        content: a .tflite file.
        masks: path -> bool array in canonical layout (output, *spatial, input), True = kept.

    Returns:
        One check for each mask, in their order.

    Raises:
        InputError: `content` is not a .tflite file, or a mask is not boolean.
    """
    for path, mask in masks.items():
        if mask.dtype != np.bool_:
            raise InputError(f"Masks must be boolean arrays. Received: {mask.dtype} for {path!r}")
    nonzero = {
        name: constant != 0
        for name, constant in read_constants(content).items()
        if constant.ndim > 1 and not is_ballast(name)  # all zeros, which would fit every mask
    }
    compared = {path: _compare(path, mask, nonzero) for path, mask in masks.items()}
    matched = _match({path: compared[path].edges for path in masks})
    matched |= _share(masks, compared, matched)
    storage = {stored.name: stored for stored in list_tensors(content)}
    return tuple(
        _report(path, masks[path], matched.get(path), storage, compared[path].describe_nearest(masks[path]))
        for path in masks
    )


def _report(
    path: str, mask: np.ndarray, edge: _Edge | None, storage: Mapping[str, StoredTensor], nearest: str
) -> MaskCheck:
    num_masked = mask.size - int(np.count_nonzero(mask))
    if edge is None:
        return MaskCheck(path, None, num_masked, 0, None, False, nearest)
    # Tensors of up to 256 bytes are not listed; they are never stored sparse either, since DENSIFY would cost more.
    stored = storage.get(edge.tensor)
    return MaskCheck(path, edge.tensor, num_masked, edge.num_extra_zeros, stored.storage if stored else "dense", True)


def _share(
    masks: Mapping[str, np.ndarray], compared: Mapping[str, _Comparison], matched: Mapping[str, _Edge]
) -> dict[str, _Edge]:
    """The tensors of kernels that the converter merged with others: all that fit them are taken."""
    owners = {edge.tensor: path for path, edge in matched.items()}
    shared = {}
    for path in masks.keys() - matched.keys():
        left = [miss for miss in compared[path].misses if miss.tensor not in owners]
        if any(not miss.foreign_name for miss in left):
            continue  # its own tensor is there, and has weights that the mask removed
        for edge in compared[path].edges:
            # With nothing left that it could be, it is there; else if it is equal for sure, or as far as masks tell.
            if not left or not masks[path].any() or np.array_equal(masks[path], masks[owners[edge.tensor]]):
                shared[path] = edge
                break
    return shared


def _compare(path: str, mask: np.ndarray, nonzero: Mapping[str, np.ndarray]) -> _Comparison:
    """The tensors of the mask's shape, those in which every masked weight is zero before the others."""
    edges = []
    misses = []
    layer = path.split("/")[-2] if "/" in path else path
    own = re.compile(rf"(^|[/;]){re.escape(layer)}(_\d+)?([/;]|$)")  # Keras exports `conv` as `conv_1`
    for name, flags in nonzero.items():
        counts = [_count(laid_out, flags) for laid_out in _layouts(mask) if laid_out.shape == flags.shape]
        if not counts:
            continue
        violations, extra = min(counts)
        is_foreign = own.search(name) is None
        if violations:
            misses.append(_Miss(violations, name, is_foreign))
        else:
            edges.append(_Edge(extra, is_foreign, name))
    edges.sort(key=lambda edge: (edge.foreign_name, edge.num_extra_zeros))
    return _Comparison(edges, misses)


def _count(mask: np.ndarray, nonzero: np.ndarray) -> tuple[int, int]:
    """(masked weights that are not zero, kept weights that are zero)."""
    num_kept = int(np.count_nonzero(mask))
    num_kept_nonzero = int(np.count_nonzero(mask & nonzero))
    return int(np.count_nonzero(nonzero)) - num_kept_nonzero, num_kept - num_kept_nonzero


def _layouts(mask: np.ndarray) -> Iterator[np.ndarray]:
    """A canonical mask (output, *spatial, input) in every layout in which the file may hold the kernel."""
    for converted in _converted(mask):
        yield converted
        # Exact rewriting mirrors spatial kernels (export/rewriting): along one axis or both, the first kernel along
        # its input channels as well.
        if converted.ndim == 4 and converted.shape[1:3] != (1, 1):
            yield converted[:, ::-1]
            yield converted[:, :, ::-1]
            yield converted[:, ::-1, ::-1]
            yield converted[:, ::-1, ::-1, ::-1]


def _converted(mask: np.ndarray) -> Iterator[np.ndarray]:
    """A canonical mask in every layout that the converter may choose for the kernel."""
    yield mask  # CONV_2D, TRANSPOSE_CONV, FULLY_CONNECTED
    if mask.ndim == 4 and mask.shape[1:3] == (1, 1):
        yield mask[:, 0, 0]  # a 1x1 convolution that became a FULLY_CONNECTED (export/rewriting/head.py)
    if mask.ndim == 2:
        yield mask.T  # a Dense that became a BATCH_MATMUL
        yield mask[:, np.newaxis, np.newaxis]  # or a 1x1 convolution
    if mask.ndim == 3:  # one spatial dimension, expanded to two on either side
        yield mask[:, np.newaxis]
        yield mask[:, :, np.newaxis]
    if mask.ndim == 5:
        yield mask.transpose(1, 2, 3, 4, 0)  # CONV_3D: depth, height, width, input, output
        yield mask.transpose(1, 2, 3, 0, 4)  # CONV_3D_TRANSPOSE: depth, height, width, output, input
    if mask.ndim in (3, 4) and mask.shape[-1] == 1:  # DEPTHWISE_CONV_2D: 1, height, width, output
        depthwise = np.moveaxis(mask[..., 0], 0, -1)[np.newaxis]
        yield depthwise
        if mask.ndim == 3:
            yield depthwise[:, np.newaxis]
            yield depthwise[:, :, np.newaxis]


def _match(edges: Mapping[str, list[_Edge]]) -> dict[str, _Edge]:
    """A largest matching of masks and tensors by augmenting paths, built from the likeliest edges before the others."""
    owners: dict[str, str] = {}
    matched: dict[str, _Edge] = {}
    for is_likely in _LIKELIEST_FIRST:
        allowed = {path: [edge for edge in found if is_likely(edge)] for path, found in edges.items()}
        # Masks with the fewest tensors to choose from go first, so that a mask that keeps everything cannot displace
        # them.
        for path in sorted(edges, key=lambda path: len(allowed[path])):
            if path not in matched:
                _augment(path, allowed, owners, matched, set())
    return matched


def _augment(
    path: str,
    allowed: Mapping[str, list[_Edge]],
    owners: dict[str, str],
    matched: dict[str, _Edge],
    visited: set[str],
) -> bool:
    for edge in allowed[path]:
        if edge.tensor in visited:
            continue
        visited.add(edge.tensor)
        owner = owners.get(edge.tensor)
        if owner is None or _augment(owner, allowed, owners, matched, visited):
            owners[edge.tensor] = path
            matched[path] = edge
            return True
    return False
