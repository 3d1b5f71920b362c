"""An int8 .tflite file becomes a folder for firmware: generated C with a proof, or, for TFLM, the file as an array."""

import math
import pathlib
import re
import string
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from reflow_tf.choices import check_between
from reflow_tf.data.as_stored import AsStored, Preparation
from reflow_tf.export.bitmap_storage import count_decoded_bytes
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflm_operators import settle_operators
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.finished import choose_preprocessing, draw_inputs
from reflow_tf.report.folder import Content, OutputFolder
from reflow_tf.runtimes.cortex_m.boards import BOARDS, Board
from reflow_tf.runtimes.cortex_m.toolchain import data_file, linker_script
from reflow_tf.runtimes.litert import read_tflite
from reflow_tf.runtimes.tflm.arena import find_arena
from reflow_tf.runtimes.tflm.runtime import TFLM

_NUMBERS_A_LINE = 24
_PIXELS = "row by row, the channels of a pixel together"
_IRREGULAR = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_NEEDS_DECODE = """ of 2025 or later (its operator `TFLM_DECODE` expands weights that are stored
as bitmaps, at every inference):"""
_ARRAY = frozenset(("README.md", "model_data.c", "model_data.h", "images.h"))
_FRAME = frozenset(("README.md", "Makefile", "main.c", "images.h", "startup.c", "semihosting.h", "board.ld", "model"))
_MADE = frozenset(("firmware.elf", "main.o", "startup.o"))  # by make, beside what it puts into model/


def write_firmware(
    source: EvaluateConfig,
    output_dir: str,
    *,
    board: str = "m4",
    as_array: bool | None = None,
    num_inputs: int = 4,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes the folder, or nothing of it, and returns its path.

    Args:
        source: the .tflite file and the images; they are prepared as for its evaluation.
        output_dir: the folder.
        board: what the Makefile builds for and runs on: a key of `BOARDS`.
        as_array: for TFLM, an array instead of generated C; None: for files that only TFLM reads, those with bitmaps.
        num_inputs: images that the program is proved on.
        overwrite: whether a folder that an earlier call wrote may be replaced.

    Raises:
        InputError: a file or the data cannot be used, C cannot be generated, or the folder cannot be written.
    """
    check_between("num_inputs", num_inputs, 1)
    content = read_tflite(pathlib.Path(source.model).expanduser())
    is_array = has_bitmaps(content) if as_array is None else as_array
    names = _ARRAY if is_array else _FRAME
    folder = OutputFolder(output_dir, names, overwrite, optional=_MADE, former=(_ARRAY, _FRAME))
    folder.require_outside({"model": source.model, "data": source.data})
    in_tflm = settle_operators(content)
    runtime = TFLM(in_tflm)
    graph = read_operators(content)
    images = draw_inputs(source, runtime, graph, num_inputs)
    pairs = _write_images(runtime.to_bytes(images), runtime.run_bytes(images))
    words = {
        "num_images": num_inputs,
        "tflm": runtime.name,
        "ends": _describe_ends(runtime, choose_preprocessing(source, runtime.input_shape, graph)),
    }
    files = _write_array(in_tflm, words) if is_array else _write_sources(content, BOARDS[board], words)
    folder.write({"images.h": pairs, **files})
    return folder.path


def _write_sources(content: bytes, board: Board, words: Mapping[str, object]) -> dict[str, Content]:
    sources = generate_c(content)
    words = {
        **words,
        "cpu": board.cpu,
        "machine": board.machine,
        "flags": " ".join(board.flags),
        "arena_bytes": f"{sources.arena_bytes:,}",
    }
    model: dict[str, Content] = {f"model/{name}": text for name, text in sources.files.items()}
    return {
        **model,
        "README.md": _fill("README.md.in", words),
        "Makefile": _fill("Makefile.in", words),
        "main.c": _data("main.c"),
        "startup.c": data_file("startup.c"),
        "semihosting.h": data_file("semihosting.h"),
        "board.ld": linker_script(board),
    }


def _write_array(content: bytes, words: Mapping[str, object]) -> dict[str, Content]:
    graph = read_operators(content)
    kinds = sorted({operator.kind for operator in graph.operators})
    decoded = count_decoded_bytes(content)
    calls = [*(["AddDecode"] if decoded else []), *(f"Add{_camel(kind)}" for kind in kinds)]
    words = {
        **words,
        "needed": ":",
        "beside": "",
        "size_bytes": f"{len(content):,}",
        "num_operators": len(calls),
        "registrations": "\n".join(f"      operators.{call}();" for call in calls),
        "arena_bytes": find_arena(content),
    }
    if decoded:
        memory = {"arena_beside_bytes": find_arena(content, decoded), "decode_bytes": decoded}
        words |= {"needed": _NEEDS_DECODE, "beside": _fill("DECODE.md.in", memory)}
    return {
        "README.md": _fill("ARRAY.md.in", words),
        "model_data.h": _fill("model_data.h.in", {"num_bytes": len(content)}),
        "model_data.c": '#include "model_data.h"\n\n'
        f"MODEL_ALIGNED const unsigned char model_data[{len(content)}] = {{\n"
        f"{_list_numbers(np.frombuffer(content, np.uint8))}\n}};\n",
    }


def _describe_ends(runtime: TFLM, preprocessing: Preparation) -> str:
    """How pixels become the bytes of an input, and what the bytes of an output stand for, as C would have it."""
    names = [part.name for part in preprocessing.parts] if isinstance(preprocessing, AsStored) else []
    order = "the last axis fastest" if isinstance(preprocessing, AsStored) else _PIXELS
    sentences = []
    for details, name, begins in _place(runtime.inputs, "input", names):
        scale, zero = details["quantization"]
        stored = f"round(x / {scale:.9g}) {_signed(zero)}, limited to -128 to 127" if scale else str(details["dtype"])
        name = name[0].upper() + name[1:]
        sentences.append(
            f"{name} has the shape {_spell(details)}, {order}{begins}. This network was trained on "
            f"x = {preprocessing.formula}; a real input x is stored as {stored}."
        )
    for details, name, begins in _place(runtime.outputs, "output", []):
        step, origin = details["quantization"]
        real = f"(y {_signed(-origin)}) * {step:.9g}" if step else f"itself, {details['dtype']}"
        sentences.append(f"Of {name}, of shape {_spell(details)}{begins}, a number y stands for {real}.")
    is_plain = len(runtime.inputs) == len(runtime.outputs) == 1
    paragraphs = [" ".join(sentences)] if is_plain else [f"* {sentence}" for sentence in sentences]
    indent = "" if is_plain else "  "
    return "\n".join(
        textwrap.fill(each, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for each in paragraphs
    )


def _place(
    ends: Sequence[Mapping[str, Any]], kind: str, names: Sequence[str]
) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """Each input or output, what it is called, and of several where it begins."""
    start = 0
    for number, details in enumerate(ends):
        name, begins = f"the {kind}", ""
        if len(ends) > 1:
            name = f"{kind} {number}{f', `{names[number]}`,' if names else ''}"
            begins = f", from byte {start} on"
        yield details, name, begins
        start += math.prod(details["shape"]) * details["dtype"].itemsize


def _spell(details: Mapping[str, Any]) -> str:
    return "x".join(map(str, details["shape"][1:])) or "1"


def _signed(number: int) -> str:
    """A term of a sum: '+ 3', '- 3'."""
    return f"{'-' if number < 0 else '+'} {abs(number)}"


def _write_images(images: np.ndarray, expected: np.ndarray) -> str:
    lines = ["/* What goes into the network, and what comes out of TFLM. */", "#pragma once", "#include <stdint.h>", ""]
    lines.append(f"enum {{ NUM_IMAGES = {len(images)} }};")
    for name, arrays in (("images", images), ("expected", expected)):
        rows = [f"{{\n{_list_numbers(array.reshape(-1))}\n}}" for array in arrays]
        size = arrays[0].size
        lines.append(f"\nstatic const int8_t {name}[NUM_IMAGES][{size}] = {{{', '.join(rows)}}};")
    return "\n".join(lines) + "\n"


def _list_numbers(numbers: np.ndarray) -> str:
    texts = [str(number) for number in numbers.tolist()]
    rows = (texts[start : start + _NUMBERS_A_LINE] for start in range(0, len(texts), _NUMBERS_A_LINE))
    return ",\n".join("  " + ", ".join(row) for row in rows)


def _camel(kind: str) -> str:
    """'CONV_2D' -> 'Conv2D', as MicroMutableOpResolver spells its functions (micro_mutable_op_resolver.h)."""
    regular = re.sub(r"_(\w)", lambda found: found[1].upper(), kind.capitalize()).replace("2d", "2D")
    return _IRREGULAR.get(kind, regular)


def _fill(name: str, words: Mapping[str, object]) -> str:
    return string.Template(_data(name).decode()).substitute(words)


def _data(name: str) -> bytes:
    return resources.files("reflow_tf.jobs.firmware").joinpath(name).read_bytes()
