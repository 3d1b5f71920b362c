"""CMSIS-NN's sources, from wherever they lie: the wheel of `bakenn`, its unpacked folder, or a checkout of CMSIS-NN."""

import pathlib
import re
import zipfile
from collections.abc import Mapping

from reflow_tf.errors import InputError

_WANTED = re.compile(r"(?:(?!Tests/|Examples/).*/)?(Include|Source)/(.+\.[ch])")
# Kernels for other types than int8 are left out of the build, for speed.
_OTHER_TYPES = re.compile(r"_(s16|s4|f16|f32|flt|svdf|lstm)(_|\.)")


def read_sources(path: pathlib.Path) -> Mapping[str, str]:
    """File name -> text; headers as they are included, sources in a folder `cmsis_nn`.

    Raises:
        InputError: CMSIS-NN is not there.
    """
    if path.is_dir():
        texts = {str(one.relative_to(path)): one.read_text for one in sorted(path.rglob("*.[ch]"))}
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        texts = {name: lambda name=name: archive.read(name).decode() for name in archive.namelist()}
    else:
        raise InputError(f"CMSIS-NN must be a wheel of bakenn or a folder. Received: {path}")
    files = {}
    for name, read in texts.items():
        if "esp_nn" in name or not (found := _WANTED.fullmatch(name)):
            continue
        kind, rest = found.groups()
        if kind == "Include":
            files[rest] = read()
        elif not _OTHER_TYPES.search(rest) or "s8" in rest:
            files[f"cmsis_nn/{rest}"] = read()
    if "arm_nnfunctions.h" not in files:
        raise InputError(f"CMSIS-NN must have Include/arm_nnfunctions.h. Received: {path} without it")
    return files


def has_function(sources: Mapping[str, str], name: str) -> bool:
    """Whether a source defines the kernel that is called as its file."""
    return any(file.endswith(f"/{name}.c") for file in sources)
