"""The C files that a set of kernels needs."""

import re
from collections.abc import Iterable, Mapping
from importlib import resources

_FOLDER = "sources"
# Beside what a file includes.
_WITH_CODE = {"conv_gather.h": "conv_gather.c"}


def read_sources(functions: Iterable[str]) -> Mapping[str, str]:
    """Name -> text of the files with these functions of kernels.h, and of all that they include."""
    waiting = [f"{function.removeprefix('reflow_')}.c" for function in functions]
    files: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in files:
            continue
        text = (resources.files("reflow_tf.export.c_kernels") / _FOLDER / name).read_text(encoding="utf-8")
        files[name] = text
        waiting += re.findall(r'#include "(.+)"', text)
        waiting += [_WITH_CODE[name]] if name in _WITH_CODE else []
    return dict(sorted(files.items()))
