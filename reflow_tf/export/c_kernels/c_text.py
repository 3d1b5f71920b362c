"""Calls become C: constants, structures and the one function that runs them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.memory import MemoryPlan
from reflow_tf.export.c_kernels.network import Network, Tensor

_COLUMNS = 118
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("reflow_tf.export.c_kernels", "templates"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


def write_header(network: Network, memory: MemoryPlan, weight_bytes: int, name: str) -> str:
    """The header that a firmware includes."""
    return _ENVIRONMENT.get_template("model.h.jinja").render(
        guard=f"REFLOW_{_identifier(name).upper()}_H",
        ends={"input": network.inputs, "output": network.outputs},
        arena_bytes=memory.size_bytes,
        weight_bytes=weight_bytes,
    )


def write_source(network: Network, calls: Sequence[Call], memory: MemoryPlan, name: str) -> str:
    """The constants and `reflow_invoke`."""
    layers = [_write_layer(step, call, memory) for step, call in enumerate(calls)]
    return _ENVIRONMENT.get_template("model.c.jinja").render(
        header=f"{name}.h", layers=layers, arena_words=memory.size_bytes // 8, arena_bytes=memory.size_bytes
    )


def _write_layer(step: int, call: Call, memory: MemoryPlan) -> dict[str, Any]:
    """What the template says of one layer."""
    name = f"layer_{step}_{_identifier(call.layer.name)}"
    pointers = {path: f"{name}_{path.rpartition('.')[2]}" for path in call.arrays}
    arrays = [
        {"name": pointers[path], "type": _TYPES[array.dtype.name], "size": array.size, "numbers": _numbers(array)}
        for path, array in call.arrays.items()
    ]
    fields, arguments = _initializers(call.fields, pointers), _arguments(call, step, memory)
    return {"call": call, "name": name, "arrays": arrays, "fields": fields, "arguments": arguments}


_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t"}


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _arguments(call: Call, step: int, memory: MemoryPlan) -> list[str]:
    def place(tensor: Tensor) -> str:
        where = memory.places[tensor.index]
        return where if isinstance(where, str) else f"AT({where})"

    arguments = [place(tensor) for tensor in (*call.inputs, call.output)]
    return arguments + ([f"SCRATCH({memory.scratches[step]})"] if call.scratch_bytes else [])


def _initializers(fields: Mapping[str, Any], pointers: Mapping[str, str], prefix: str = "") -> list[str]:
    """Designated initializers; those of inner structures carry its name: `.rescaling.shifts = ...`."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += _initializers(value, {}, f"{prefix}.{name}")
        else:
            lines.append(f"{prefix}.{name} = {value}")
    return lines + [f".{path} = {name}" for path, name in pointers.items()]


def _numbers(array: np.ndarray) -> str:
    """The elements, in lines."""
    mark = "LL" if array.dtype == np.int64 else ""
    lines, line = [], ""
    for number in array.reshape(-1).tolist():
        text = f"{number}{mark},"
        if len(line) + len(text) + 1 > _COLUMNS:
            lines.append(line)
            line = ""
        line += f" {text}" if line else f"  {text}"
    return "\n".join([*lines, line])
