"""A Keras model, or a finished file, goes in; the smallest .tflite file that computes the same comes out."""

import dataclasses
import gzip
from collections.abc import Collection, Iterable

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.choices import BALLASTS, REWRITES, STORAGES, check_choice
from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import StoredTensor, list_tensors
from reflow_tf.export.conversion import convert_dense
from reflow_tf.export.equivalence import relative_difference
from reflow_tf.export.half_precision import allow_float16, stores_sparse
from reflow_tf.export.rewriting import Applied, Refused, Rewritten, rewrite_exact
from reflow_tf.export.stored_zeros import STORES, Stored
from reflow_tf.targets.xnnpack import DEVICES, XNNPack
from reflow_tf.targets.xnnpack.shortfall import is_ballast

_INEXACT_NOTE = (
    "Not rewritten: in LiteRT the outputs of the rewritten file differed by {difference:.1g} of the largest one (inf: "
    "it could not be run), more than the order of additions explains."
)
# Sums in another order: measured at most 2e-5 over MobileNetV2.
_MOST_RELATIVE_DIFFERENCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """A .tflite file and where its bytes go.

    Attributes:
        content: the file.
        dense_content: the same file with every tensor dense.
        gzip_size_bytes: size of `content` after gzip, level 6, as an app store or a web server would send it.
        tensors: the constants of more than 256 dense bytes, in the order of the file; ballast is left out.
        notes: sentences for the person who reads the report; often none.
        rewrites: what `rewrite='exact'` changed.
        refused: rewrites that would help the target and do not hold here.
    """

    content: bytes
    dense_content: bytes
    gzip_size_bytes: int
    tensors: tuple[StoredTensor, ...]
    notes: tuple[str, ...]
    rewrites: tuple[Applied, ...] = ()
    refused: tuple[Refused, ...] = ()


def export_tflite(
    model: keras.Model,
    *,
    quantize: str = "none",
    io: str = "int8",
    float16_arithmetic: bool = True,
    calibration: Iterable[np.ndarray] | None = None,
    batch_size: int = 1,
    storage: str = "sparse",
    rewrite: str = "none",
    ballast: str = "auto",
    device: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> ExportedFile:
    """Converts a model into a .tflite file, weights sparse wherever that makes the file smaller.

    A file with sparse tensors is run once in LiteRT beside the dense one; unless both agree bit for bit, the dense one
    is returned and `notes` says so. So it is where XNNPACK's rules say that sparse storage would make a phone compute
    something else: some graphs end a sparse cluster in the middle, and its output is then read in the wrong layout.

    Args:
        model: a built Keras 3 model with one float input and one output. It is not changed. Whatever its
            precision, the file is traced in float32.
        quantize: 'none'; 'float16': weights; 'int8': weights, activations, input and output.
        io: for int8: 'int8'; or 'float': the file takes and gives float32, as the model does.
        float16_arithmetic: a float16 file that stores no zeros sparse also lets CPUs compute in float16 which can (see
            `export.half_precision`).
        calibration: for int8: batches of float32 (n, *sample), preprocessed as for the model; each sample counts once.
        batch_size: the batch of the file, fixed because LiteRT.js and XNNPACK's sparse kernels want it fixed.
        storage: how weights that are mostly zeros lie in the file, each only where that makes it smaller: 'sparse':
            TFLite's sparse tensors; 'bitmap': TFLM's bitmaps, without what TFLM never reads (see `export.slimming`)
            and what it computes otherwise (`export.tflm_operators`); 'dense': every tensor dense.
        rewrite: 'exact' changes the graph, and nothing that it computes, so that XNNPACK can run it sparse (see
            `export.rewriting`); the result is compared with the original in LiteRT, and dropped with a note if they
            differ by more than float noise. 'none' leaves it.
        ballast: 'auto': for storage 'sparse', exact rewriting also adds zeros that change no output where the file has
            too few to run sparse and would gain (`export.rewriting.ballast`); 'off': never.
        device: where it has to gain for that: 'browser' or 'arm'; None: on both.
        input_shape: shape of one sample, for a model that leaves a dimension open.

    Raises:
        InputError: the model, the calibration data or an argument cannot be used; the message names which.
    """
    _check_choices(storage, rewrite, ballast, device)
    converted = convert_dense(
        model, quantize=quantize, io=io, calibration=calibration, batch_size=batch_size, input_shape=input_shape
    )
    rewritten, stored = _rewrite_and_store(converted, storage, rewrite, ballast, device)
    if quantize == "int8":
        stored = dataclasses.replace(stored, notes=(*stored.notes, *_note_floats(stored.content)))
    if quantize == "float16" and float16_arithmetic:
        is_sparse = stores_sparse(flatbuffer.parse(stored.content))
        content = stored.content if is_sparse else allow_float16(stored.content)
        stored = dataclasses.replace(stored, content=content, dense_content=allow_float16(stored.dense_content))
    return _describe(rewritten, stored)


def rewrite_tflite(
    content: bytes, *, storage: str = "sparse", rewrite: str = "exact", ballast: str = "auto", device: str | None = None
) -> ExportedFile:
    """A finished file as small as the zeros in it allow, and fit for XNNPACK's sparse kernels; it computes the same.

    Args:
        content: a .tflite file, whoever made it; with an open batch, it gets a batch of 1.
        storage: as for `export_tflite`, and so the others.
        rewrite: see there.
        ballast: see there.
        device: see there.

    Raises:
        InputError: it is not a whole .tflite file, or an argument is unknown.
    """
    _check_choices(storage, rewrite, ballast, device)
    return _describe(*_rewrite_and_store(flatbuffer.fix_batch(content), storage, rewrite, ballast, device))


def _check_choices(storage: str, rewrite: str, ballast: str, device: str | None) -> None:
    check_choice("rewrite", rewrite, REWRITES)
    check_choice("storage", storage, STORAGES)
    check_choice("ballast", ballast, BALLASTS)
    if device is not None:
        check_choice("device", device, DEVICES)


def _rewrite_and_store(
    content: bytes, storage: str, rewrite: str, ballast: str, device: str | None
) -> tuple[Rewritten, Stored]:
    """A converted file rewritten, and that with its zeros stored; what to say of both is in the notes of the latter."""
    rewritten, notes = Rewritten(content, (), ()), list[str]()
    if rewrite == "exact":
        target = XNNPack(device=device, ballast=ballast == "auto" and storage == "sparse")
        rewritten, notes = _rewrite(content, target.ballast_for)
    stored = STORES[storage](rewritten.content)
    return rewritten, dataclasses.replace(stored, notes=(*notes, *stored.notes))


def _describe(rewritten: Rewritten, stored: Stored) -> ExportedFile:
    return ExportedFile(
        content=stored.content,
        dense_content=stored.dense_content,
        gzip_size_bytes=len(gzip.compress(stored.content, 6, mtime=0)),
        tensors=tuple(tensor for tensor in list_tensors(stored.content) if not is_ballast(tensor.name)),
        notes=tuple(stored.notes),
        rewrites=rewritten.applied,
        refused=rewritten.refused,
    )


def _rewrite(converted: bytes, ballast_for: Collection[str]) -> tuple[Rewritten, list[str]]:
    """The rewritten file, provided that LiteRT computes the same with it; and what to say."""
    rewritten = rewrite_exact(converted, ballast_for)
    if not rewritten.applied:
        return rewritten, []
    difference = relative_difference(converted, rewritten.content)
    if difference <= _MOST_RELATIVE_DIFFERENCE:  # NaN is not
        return rewritten, []
    return Rewritten(converted, (), rewritten.refused), [_INEXACT_NOTE.format(difference=difference)]


def _note_floats(content: bytes) -> list[str]:
    """Says which operators of an int8 file compute in float32, if any do."""
    model = flatbuffer.parse(content)
    kept = set()
    for graph in model.subgraphs:
        for operator in graph.operators:
            types = {graph.tensors[index].type for index in operator.outputs}
            if schema.TensorType.FLOAT32 in types:
                kept.add(flatbuffer.operator_kind(model, operator))
    kept -= {"DEQUANTIZE", "DENSIFY"}
    if not kept:
        return []
    return [f"These operators have no int8 form in TFLite and compute in float32: {', '.join(sorted(kept))}."]
