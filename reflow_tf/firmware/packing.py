"""An int8 .tflite file becomes a folder for firmware: generated C with a proof, or, for TFLM, the file as an array."""

import pathlib
import re
import string
from collections.abc import Mapping
from importlib import resources

import numpy as np

from reflow_tf.config import EvaluateConfig, check_between
from reflow_tf.evaluation import draw_inputs
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.export.c_kernels.reading import read_network
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.operators import read_operators
from reflow_tf.report.folder import Content, OutputFolder
from reflow_tf.runtimes.cortex_m.boards import BOARDS, Board
from reflow_tf.runtimes.cortex_m.toolchain import data_file, linker_script
from reflow_tf.runtimes.device_script import to_type
from reflow_tf.runtimes.litert import read_tflite
from reflow_tf.runtimes.tflm.arena import find_arena
from reflow_tf.runtimes.tflm.runtime import TFLM

_NUMBERS_A_LINE = 24
_ARRAY = frozenset(("README.md", "model_data.c", "model_data.h"))
_FRAME = frozenset(("README.md", "Makefile", "main.c", "images.h", "startup.c", "semihosting.h", "board.ld", "model"))
_MADE = frozenset(("firmware.elf", "main.o", "startup.o"))  # by make, beside what it puts into model/


def write_firmware(
    source: EvaluateConfig, output_dir: str, *, board: str = "m4", num_inputs: int = 4, overwrite: bool = False
) -> pathlib.Path:
    """Writes the folder, or nothing of it, and returns its path.

    Args:
        source: the .tflite file and the images; they are prepared as for its evaluation.
        output_dir: the folder.
        board: what the Makefile builds for and runs on: a key of `BOARDS`.
        num_inputs: images that the program is proved on.
        overwrite: whether a folder that an earlier call wrote may be replaced.

    Raises:
        InputError: a file or the data cannot be used, C cannot be generated, or the folder cannot be written.
    """
    check_between("num_inputs", num_inputs, 1)
    content = read_tflite(pathlib.Path(source.model).expanduser())
    is_array = has_bitmaps(content)
    folder = OutputFolder(output_dir, _ARRAY if is_array else _FRAME, overwrite, optional=_MADE)
    folder.require_outside({"model": source.model, "data": source.data})
    folder.write(_write_array(content) if is_array else _write_sources(content, source, BOARDS[board], num_inputs))
    return folder.path


def _write_sources(content: bytes, source: EvaluateConfig, board: Board, num_inputs: int) -> dict[str, Content]:
    sources, network = generate_c(content), read_network(content)
    images = draw_inputs(source, network.input.shape, num_inputs)
    taken, given = ((end.scale, end.zero_point) for end in (network.input, network.output))
    stored = to_type(images, {"dtype": np.int8, "quantization": taken})
    words = {
        "cpu": board.cpu,
        "machine": board.machine,
        "flags": " ".join(board.flags),
        "num_images": num_inputs,
        "arena_bytes": f"{sources.arena_bytes:,}",
        "input_shape": "x".join(map(str, network.input.shape[1:])),
        **_name_scales(input=taken, output=given),
    }
    model: dict[str, Content] = {f"model/{name}": text for name, text in sources.files.items()}
    return {
        **model,
        "README.md": _fill("README.md.in", words),
        "Makefile": _fill("Makefile.in", words),
        "main.c": _data("main.c"),
        "images.h": _write_images(stored, TFLM(content).run_int8(images)),
        "startup.c": data_file("startup.c"),
        "semihosting.h": data_file("semihosting.h"),
        "board.ld": linker_script(board),
    }


def _write_array(content: bytes) -> dict[str, Content]:
    runtime, graph = TFLM(content), read_operators(content)
    kinds = sorted({operator.kind for operator in graph.operators})
    calls = ["AddDecode", *(f"Add{_camel(kind)}" for kind in kinds)]
    words = {
        "size_bytes": f"{len(content):,}",
        "num_operators": len(calls),
        "registrations": "\n".join(f"    operators.{call}();" for call in calls),
        "arena_bytes": find_arena(content),
        "runtime": runtime.name,
        **_name_scales(input=runtime.input_quantization, output=runtime.output_quantization),
    }
    return {
        "README.md": _fill("ARRAY.md.in", words),
        "model_data.h": f"#pragma once\n\nextern const unsigned char model_data[{len(content)}];\n",
        "model_data.c": '#include "model_data.h"\n\n'
        f"_Alignas(16) const unsigned char model_data[{len(content)}] = {{\n"
        f"{_list_numbers(np.frombuffer(content, np.uint8))}\n}};\n",
    }


def _name_scales(**ends: tuple[float, int]) -> dict[str, object]:
    return {
        f"{name}_{part}": value
        for name, (scale, zero_point) in ends.items()
        for part, value in (("scale", f"{scale:.9g}"), ("zero_point", zero_point))
    }


def _write_images(images: np.ndarray, expected: np.ndarray) -> str:
    lines = ["/* What goes into the network, and what comes out of TFLM. */"]
    lines += ["#include <stdint.h>", ""]
    lines.append(f"enum {{ NUM_IMAGES = {len(images)} }};")
    for name, arrays in (("images", images), ("expected", expected)):
        rows = [f"{{\n{_list_numbers(array.reshape(-1))}\n}}" for array in arrays]
        size = arrays[0].size
        lines.append(f"\n_Alignas(16) static const int8_t {name}[NUM_IMAGES][{size}] = {{{', '.join(rows)}}};")
    return "\n".join(lines) + "\n"


def _list_numbers(numbers: np.ndarray) -> str:
    texts = [str(number) for number in numbers.tolist()]
    rows = (texts[start : start + _NUMBERS_A_LINE] for start in range(0, len(texts), _NUMBERS_A_LINE))
    return ",\n".join("  " + ", ".join(row) for row in rows)


def _camel(kind: str) -> str:
    """'CONV_2D' -> 'Conv2D', as MicroMutableOpResolver spells its functions."""
    return re.sub(r"_(\w)", lambda found: found[1].upper(), kind.capitalize()).replace("2d", "2D")


def _fill(name: str, words: Mapping[str, object]) -> str:
    return string.Template(_data(name).decode()).substitute(words)


def _data(name: str) -> bytes:
    return resources.files("reflow_tf.firmware").joinpath(name).read_bytes()
