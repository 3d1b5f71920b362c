"""What Vela estimates of one file on one accelerator, whole and operator by operator.

An Ethos-U reads its weights compressed, zeros almost for free (`targets.ethos_u` says how nearly), so a pruned file
needs less flash everywhere, and less time wherever reading the weights is what takes it. The multiplications themselves
are skipped by the U85 alone, where at least two of four neighbouring input channels are zero; Vela finds such layers by
itself, without any option.

The cycles are those of Vela's model of the hardware. Vela calls them internal compiler estimates, and says that for
performance numbers the compiled network should be run on Arm's simulator (FVP) or an FPGA.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from reflow_tf.errors import InputError
from reflow_tf.runtimes.vela.compiler import Report, Row, run_vela
from reflow_tf.targets.ethos_u import DEFAULT_ACCELERATOR

_ON_CPU = "Passthrough"
_SPARSE_2_4 = "Sparse2_4"


@dataclasses.dataclass(frozen=True)
class Layer:
    """What Vela estimates of one operator of the file; it may have become several on the NPU.

    Attributes:
        operator: its position in the file's graph.
        name: of what it computes, as the file has it.
        kind: Vela's name of it: 'Conv2D', 'DepthwiseConv2D', ...
        on_npu: False: it is left to the CPU, and nothing is known of its cycles.
        cycles: until it is done, memory accesses included.
        npu_cycles: what it would take if memories were never waited for.
        macs: multiply-accumulates that it does, those with zeros included; half of them where it skips zeros.
        sram_bytes: the most that is in use while it runs.
        weight_bytes: its weights as they are stored, compressed, without scales and biases.
        skips_zeros: its weights are stored and multiplied as 2:4, on the U85 alone.
    """

    operator: int
    name: str
    kind: str
    on_npu: bool
    cycles: int
    npu_cycles: int
    macs: int
    sram_bytes: int
    weight_bytes: int
    skips_zeros: bool


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What Vela estimates of one file. None of it was measured, but for the size of the compiled file.

    Attributes:
        version: of Vela.
        accelerator: 'ethos-u55-128': the family and its multiply-accumulates a cycle.
        system_config: the section of Vela's Arm/vela.ini that says how fast clock and memories are.
        memory_mode: the section that says what lies in which memory.
        clock_mhz: the clock that it assumes.
        sram_bytes: peak use of SRAM.
        flash_bytes: constants and commands in flash; 0 where the memory mode has them in DRAM.
        dram_bytes: peak use of DRAM; 0 where the system has none.
        cycles: of one inference on the NPU, memory accesses included; operators on the CPU are not in it.
        npu_cycles: what it would take if memories were never waited for.
        inference_ms: `cycles` at `clock_mhz`.
        macs: the sum of its layers'.
        weight_bytes: all weights as they are stored, compressed.
        compiled_size_bytes: of the .tflite file that Vela writes for the device.
        layers: in the order of execution.
    """

    version: str
    accelerator: str
    system_config: str
    memory_mode: str
    clock_mhz: float
    sram_bytes: int
    flash_bytes: int
    dram_bytes: int
    cycles: int
    npu_cycles: int
    inference_ms: float
    macs: int
    weight_bytes: int
    compiled_size_bytes: int
    layers: tuple[Layer, ...]

    @property
    def storage_bytes(self) -> int:
        """What the constants lie in: flash, or DRAM in those of Vela's systems that have it in its place."""
        return self.flash_bytes or self.dram_bytes

    @property
    def name(self) -> str:
        """What estimated and for what, for reports."""
        return (
            f"estimate of Vela {self.version} for {self.accelerator} ({self.system_config}, {self.memory_mode}, "
            f"{self.clock_mhz:g} MHz)"
        )

    @property
    def num_cpu_operators(self) -> int:
        """Operators of the file that the NPU does not run."""
        return sum(not layer.on_npu for layer in self.layers)


def estimate(
    content: bytes,
    accelerator: str = DEFAULT_ACCELERATOR,
    *,
    system_config: str | None = None,
    memory_mode: str | None = None,
) -> Estimate:
    """Asks Vela what a file would take on an Ethos-U.

    Args:
        content: a .tflite file in int8 throughout, its weights dense.
        accelerator: one of `targets.ethos_u.ACCELERATORS`.
        system_config: a section of Vela's Arm/vela.ini. None, as Vela has it: Ethos_U55_High_End_Embedded (flash),
            Ethos_U65_Client_Server and Ethos_U85_SYS_DRAM_Mid (DRAM, no flash).
        memory_mode: another one. None, as Vela has it: Shared_Sram for the U55, Dedicated_Sram_384KB for the others.

    Raises:
        InputError: Vela is missing or cannot compile the file, or would leave all of it to the CPU.
    """
    report = run_vela(content, accelerator, system_config, memory_mode)
    layers = _read_layers(report)
    if not any(layer.on_npu for layer in layers):
        raise InputError(
            f"An Ethos-U runs operators in int8: export with --quantize=int8. Received: a file of which Vela "
            f"{report.version} leaves all {len(layers)} operators to the CPU"
        )
    return _read_whole(report, accelerator, layers)


def compare(dense: Estimate, pruned: Estimate) -> tuple[tuple[Layer, Layer], ...]:
    """The operators of two files of one network, side by side.

    Raises:
        InputError: the estimates are for different hardware, or of different networks.
    """
    if dense.name != pruned.name:
        raise InputError(f"Two estimates must be for the same hardware. Received: {dense.name}; {pruned.name}")
    forms = [[(layer.operator, layer.kind) for layer in one.layers] for one in (dense, pruned)]
    if forms[0] != forms[1]:
        different = next((pair for pair in zip(*forms, strict=False) if pair[0] != pair[1]), None)
        where = f"{different[0]} and {different[1]}" if different else f"{len(forms[0])} and {len(forms[1])} operators"
        raise InputError(f"Two estimates must be of the same network. Received: {where}")
    return tuple(zip(dense.layers, pruned.layers, strict=True))


def _read_layers(report: Report) -> tuple[Layer, ...]:
    parts: defaultdict[str, list[Row]] = defaultdict(list)
    stored = {row["id"]: row for row in report.tables["perf_debug"]}
    for row in report.tables["perf"]:
        parts[row["source_id"]].append({**stored.get(row["id"], {}), **row})
    sources = {row["id"]: row for row in report.tables["source"]}
    return tuple(_read_layer(sources[source], rows) for source, rows in parts.items())


def _read_layer(source: Row, parts: Sequence[Row]) -> Layer:
    def total(column: str) -> int:
        return sum(int(part.get(column) or 0) for part in parts)

    return Layer(
        operator=int(source["ext_key"]),
        name=parts[0]["name"],
        kind=source["operator"],
        on_npu=all(part["operator"] != _ON_CPU for part in parts),
        cycles=total("op_cycles"),
        npu_cycles=total("npu_cycles"),
        macs=total("mac_count"),
        sram_bytes=max(int(part["staging_usage"] or 0) for part in parts),
        weight_bytes=total("weight_total_bytes"),
        skips_zeros=any(_SPARSE_2_4 in part.get("weight_format", "") for part in parts),
    )


def _read_whole(report: Report, accelerator: str, layers: tuple[Layer, ...]) -> Estimate:
    row = report.summary

    def used(*memories: str) -> int:
        return round(sum(float(row[f"{memory}_memory_used"]) for memory in memories) * 1024)  # in KiB there

    return Estimate(
        version=report.version,
        accelerator=accelerator,
        system_config=row["system_config"],
        memory_mode=row["memory_mode"],
        clock_mhz=float(row["core_clock"]) / 1e6,
        sram_bytes=used("sram"),
        flash_bytes=used("on_chip_flash", "off_chip_flash"),
        dram_bytes=used("dram"),
        cycles=int(row["cycles_total"]),
        npu_cycles=int(row["cycles_npu"]),
        inference_ms=1000 * float(row["inference_time"]),
        macs=int(row["nn_macs"]),
        weight_bytes=int(row["total_npu_encoded_weights"]),
        compiled_size_bytes=report.file_size_bytes,
        layers=layers,
    )
