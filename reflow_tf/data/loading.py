"""From the values of the data flags to the calibration and evaluation sets.

What counts as the same image: two sources of one kind compare by what is cheap and exact there (the bytes of the file
for folders and TFDS, the pixel values for arrays); sources of different kinds compare by decoded pixel values. So the
same picture saved twice in different file formats inside two folders is not recognised.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from reflow_tf.data.as_stored import AsStored, Preparation, spell_batch
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.data.classes import are_one_each, describe_labels, read_class_names
from reflow_tf.data.embedded import EmbeddedSource
from reflow_tf.data.folder import FolderSource
from reflow_tf.data.function import FunctionSource
from reflow_tf.data.npz import NpzSource
from reflow_tf.data.sources import ImageSource, Labels, Place, SourceRequest, pixel_digest, remember
from reflow_tf.data.split import draw_indices, split_indices
from reflow_tf.data.tfds import TfdsSource
from reflow_tf.errors import InputError

SOURCES: tuple[type[ImageSource], ...] = (EmbeddedSource, TfdsSource, FunctionSource, NpzSource, FolderSource)


def load_sets(
    data: str,
    eval_data: str | None,
    *,
    preprocessing: Preparation,
    num_classes: int | None,
    class_names_path: str | None,
    calibration_samples: int,
    batch_size: int,
    seed: int,
    positions: tuple[int | None, ...] = (),
    labels: Labels = Labels.CLASSES,
) -> tuple[CalibrationSet, EvaluationSet]:
    """Opens the data and divides it; no image calibrates and evaluates.

    - With `eval_data`: `calibration_samples` of `data`, drawn at random, and all of `eval_data`. A drawn image whose
      content is also in `eval_data` is an error.
    - Without it, data with official splits (`fashion_mnist`): the same, with its own evaluation split.
    - Otherwise a random permutation: at most half of the images calibrate, all others evaluate. Drawn images whose
      content is also among the others are dropped and counted in `num_dropped`.

    Args:
        data: `fashion_mnist`, a folder, an `.npz`, `tfds:NAME[:SPLIT]` or `python:MODULE:FUNCTION`.
        eval_data: the same, or None.
        preprocessing: what the network wants to see.
        num_classes: length of the network's last axis; None if it is not known.
        class_names_path: file with one class a line, in the order of the network's outputs; or None.
        calibration_samples: images to calibrate on, at least 1; fewer are used if there are fewer.
        batch_size: the largest batch.
        seed: of the draw; 0 or more.
        positions: of the map that the network predicts, as `SourceRequest` has them.
        labels: which are wanted.

    Raises:
        InputError: if a number is out of range, a source does not fit (see each source's `open`), there are too few
            images, images of one source differ in size while `preprocessing.size` is None, or the sets overlap.
    """
    _require_at_least(1, calibration_samples=calibration_samples, batch_size=batch_size)
    _require_at_least(0, seed=seed)
    source, preprocess = _open(data, preprocessing, num_classes, class_names_path, positions, labels)
    if eval_data is None and source.held_out() is None:
        return _split(source, preprocess, calibration_samples, batch_size, seed)
    evaluation = load_evaluation(
        data if eval_data is None else eval_data,
        preprocessing=preprocessing,
        num_classes=num_classes,
        class_names_path=class_names_path,
        batch_size=batch_size,
        positions=positions,
        labels=labels,
    )
    drawn = draw_indices(len(source), calibration_samples, seed)
    _require_disjoint(source, drawn, evaluation.source)
    calibration = CalibrationSet(source, drawn, preprocess, batch_size)
    _require_one_shape(calibration, evaluation)
    return calibration, evaluation


def load_evaluation(
    data: str,
    *,
    preprocessing: Preparation,
    num_classes: int | None,
    class_names_path: str | None,
    batch_size: int,
    positions: tuple[int | None, ...] = (),
    labels: Labels = Labels.CLASSES,
) -> EvaluationSet:
    """Opens data to evaluate on all of its images, in its own order; `fashion_mnist` means its evaluation split.

    Args: as for `load_sets`.

    Raises:
        InputError: if the batch size is below 1, the source does not fit (see each source's `open`), or its images
            differ in size while `preprocessing.size` is None.
    """
    _require_at_least(1, batch_size=batch_size)
    source, preprocess = _open(data, preprocessing, num_classes, class_names_path, positions, labels)
    if (held_out := source.held_out()) is not None:
        assert source.place is not None
        source = remember(held_out, replace(source.place, held_out=True))
    return EvaluationSet(source, np.arange(len(source)), preprocess, batch_size)


def _open(
    text: str,
    preprocessing: Preparation,
    num_classes: int | None,
    class_names_path: str | None,
    positions: tuple[int | None, ...],
    labels: Labels,
) -> tuple[ImageSource, Preparation]:
    """The source, and the preprocessing that its images still need."""
    class_names = None if class_names_path is None else read_class_names(class_names_path, num_classes)
    request = SourceRequest(text, preprocessing, num_classes, class_names, positions, labels)
    for kind in SOURCES:
        if kind.accepts(text):
            if isinstance(preprocessing, AsStored) and kind.only_images:
                raise InputError(f"{_describe_need(preprocessing)}. Received: {text}")
            source = remember(kind.open(request), Place(kind, request))
            if source.labels is not None and not are_one_each(source.labels.shape[1:], positions):
                raise InputError(
                    f"the network predicts a map of classes, so labels must be {describe_labels(positions)} for each "
                    f"image: y of an .npz or of batches; a network that predicts numbers needs --task=fidelity. "
                    f"Received: {text}, with one class for each image"
                )
            if not isinstance(preprocessing, AsStored) and preprocessing.size is None:
                _require_equal_sizes(source)
            return source, source.adapt(preprocessing)
    if not os.path.exists(os.path.expanduser(text)):
        raise InputError(
            "data must be fashion_mnist, tfds:NAME[:SPLIT], python:MODULE:FUNCTION or an existing path. "
            f"Received: {text}"
        )
    raise InputError(f"a data path must be a folder of images or an .npz file. Received: {text}")


def _describe_need(wanted: AsStored) -> str:
    """The archive that a network needs which takes no images."""
    if wanted.parts:
        each = ", ".join(f"x_{part.name} {spell_batch(part.shape)}" for part in wanted.parts)
        return f"the network takes several inputs, so data must be an .npz or python: batches with each of them: {each}"
    shape = spell_batch(wanted.shape)
    needs = f"the network takes no images but inputs of shape {shape}"
    return f"{needs}, so data must be an .npz or python: batches whose x has that shape"


def _split(
    source: ImageSource, preprocessing: Preparation, calibration_samples: int, batch_size: int, seed: int
) -> tuple[CalibrationSet, EvaluationSet]:
    if len(source) < 2:
        raise InputError(f"data to split must hold at least two images. Received: only {source.name_of(0)}")
    split = split_indices(_digests(source, range(len(source))), calibration_samples, seed)
    if len(split.calibration) == 0:
        raise InputError(
            f"data to split must leave images to calibrate on; every one of the {len(split.dropped)} drawn has a copy "
            f"among the others. Received: first dropped image {source.name_of(int(split.dropped[0]))}"
        )
    calibration = CalibrationSet(source, split.calibration, preprocessing, batch_size, num_dropped=len(split.dropped))
    return calibration, EvaluationSet(source, split.evaluation, preprocessing, batch_size)


def _digests(source: ImageSource, indices: Iterable[int], *, by_pixels: bool = False) -> list[bytes]:
    """Content hashes, computed in threads because files are read for them."""

    def digest(index: int) -> bytes:
        return pixel_digest(source.image(int(index))) if by_pixels else source.digest(int(index))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, indices))


def _require_disjoint(source: ImageSource, drawn: np.ndarray, held_out: ImageSource) -> None:
    by_pixels = type(source) is not type(held_out)
    calibration = dict(zip(_digests(source, drawn, by_pixels=by_pixels), drawn, strict=True))
    for index, digest in enumerate(_digests(held_out, range(len(held_out)), by_pixels=by_pixels)):
        if digest in calibration:
            raise InputError(
                f"calibration and evaluation data must be disjoint, or the result would flatter. Received: first "
                f"shared image {source.name_of(int(calibration[digest]))}, which equals {held_out.name_of(index)}"
            )


def _require_one_shape(calibration: CalibrationSet, evaluation: EvaluationSet) -> None:
    """The file that is written takes inputs of one shape, also where the network leaves it open."""
    if calibration.sample_shape != evaluation.sample_shape:
        raise InputError(
            f"data and eval_data must hold inputs of one shape, which the file will have. "
            f"Received: {calibration.sample_shape} and {evaluation.sample_shape}"
        )


def _require_equal_sizes(source: ImageSource) -> None:
    """A batch needs images of one size, and without a size nothing resizes them."""
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(source.size_of, range(len(source))))
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise InputError(
                f"the model takes images of any size, so all must have the same, or --image_size must say to which to "
                f"resize them: {source.name_of(0)} is {sizes[0][0]}x{sizes[0][1]} (height x width). "
                f"Received: {source.name_of(index)}, which is {size[0]}x{size[1]}"
            )


def _require_at_least(smallest: int, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < smallest:
            raise InputError(f"{name} must be at least {smallest}. Received: {value}")
