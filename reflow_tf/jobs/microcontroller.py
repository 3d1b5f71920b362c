"""What a file takes on a microcontroller: flash, RAM and work; what fills them; and that it computes what it should."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from reflow_tf.export import bitmap_format
from reflow_tf.export.bitmap_storage import count_decoded_bytes
from reflow_tf.export.c_kernels.generation import CSources, generate_c
from reflow_tf.export.c_kernels.reading import read_network
from reflow_tf.export.constants import list_tensors
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import ExportedFile
from reflow_tf.export.tflm_operators import settle_operators
from reflow_tf.job_config import JobConfig
from reflow_tf.runtimes.cortex_m.runtime import CortexM, End
from reflow_tf.runtimes.cortex_m.toolchain import require_toolchain
from reflow_tf.runtimes.tflm.arena import find_arena
from reflow_tf.runtimes.tflm.interpreter import require_tflm
from reflow_tf.runtimes.tflm.runtime import TFLM
from reflow_tf.runtimes.vela.compiler import require_vela
from reflow_tf.runtimes.vela.estimate import Layer, compare, estimate
from reflow_tf.targets.operators import Operator, OperatorGraph, Value

_MOST_NAMED = 3
# An emulated board takes a tenth of a second for an image.
_EMULATED_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that takes room.

    Attributes:
        name: the layer or tensor as the file names it.
        size_bytes: what it takes.
    """

    name: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """What something takes, in bytes, instructions or cycles.

    Attributes:
        dense: in the unpruned network.
        file: in the file.
    """

    dense: int
    file: int


@dataclasses.dataclass(frozen=True)
class LayerFootprint:
    """One operator of the file, beside the same one of the unpruned network.

    Attributes:
        name: as the file names it.
        kind: of operator, as whoever measured it says.
        storage: of its weights: 'dense', 'sparse', 'bitmap', 'compressed'; '' without weights.
        size_bytes: what its constants take.
        work: estimated instructions or cycles of one inference; None where nobody estimates them.
    """

    name: str
    kind: str
    storage: str
    size_bytes: Pair
    work: Pair | None


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a file takes, beside the same network unpruned.

    Attributes:
        runtime: what ran or judged it, with versions and settings.
        estimated: nothing was run: a compiler's model says so.
        flash_bytes: of the file (without TFLM's own code), of the code and constants generated from it (without
            start-up and C library), or of the compiled network.
        dense_flash_bytes: the same for the unpruned network, in the usual dense form.
        arena_bytes: RAM for activations, the network's input and output among them, and for weights that are expanded
            there; TFLM's own tables are in it, too, as large as they are on this 64-bit machine.
        dense_arena_bytes: RAM of the unpruned network.
        arena_beside_bytes: the smallest arena where weights are expanded in memory of their own; None where none are.
        decode_bytes: that memory.
        num_compared: images that were run twice: in TFLM with bitmaps and with dense weights, or as C and in TFLM; 0
            where none were.
        num_equal: those of which all outputs were equal, bit for bit.
        instructions: board -> instructions of one inference, counted.
        npu_cycles: of one inference on an NPU, estimated; None where there is none.
        flash_largest: what takes most flash, largest first.
        ram_largest: operators with the most bytes around them, largest first.
        layers: in the order of execution.
    """

    runtime: str
    estimated: bool
    flash_bytes: int
    dense_flash_bytes: int
    arena_bytes: int
    dense_arena_bytes: int
    arena_beside_bytes: int | None
    decode_bytes: int
    num_compared: int
    num_equal: int
    instructions: Mapping[str, Pair]
    npu_cycles: Pair | None
    flash_largest: tuple[Part, ...]
    ram_largest: tuple[Part, ...]
    layers: tuple[LayerFootprint, ...]


@dataclasses.dataclass(frozen=True)
class Files:
    """What is measured.

    Attributes:
        exported: the pruned network's file.
        dense: the unpruned one's, in the same quantization.
        images: float32 (n, *sample).
    """

    exported: ExportedFile
    dense: ExportedFile
    images: np.ndarray


def measure_tflm(files: Files) -> Footprint:
    """Runs a file in TFLM for what it takes.

    Raises:
        InputError: TFLM is not installed, or cannot run a file.
    """
    content, dense = files.exported.content, settle_operators(files.dense.content)
    graph = read_operators(content)
    decoded = count_decoded_bytes(content)
    runtime = TFLM(content)
    equal = _count_equal(runtime.run_bytes(files.images), TFLM(files.exported.dense_content).run_bytes(files.images))
    return Footprint(
        runtime=runtime.name,
        estimated=False,
        flash_bytes=len(content),
        dense_flash_bytes=len(dense),
        arena_bytes=find_arena(content),
        dense_arena_bytes=find_arena(dense),
        arena_beside_bytes=find_arena(content, decoded) if decoded else None,
        decode_bytes=decoded,
        num_compared=len(files.images),
        num_equal=equal,
        instructions={},
        npu_cycles=None,
        flash_largest=_largest(Part(tensor.name, tensor.size_bytes) for tensor in list_tensors(content)),
        ram_largest=_largest_in_ram(graph),
        layers=tuple(_describe_weights(operator, graph) for operator in graph.operators),
    )


def measure_ethos_u(files: Files, accelerator: str) -> Footprint:
    """Has Vela estimate what a file takes.

    Raises:
        InputError: Vela is not installed, or cannot compile a file.
    """
    pruned, dense = (estimate(file.content, accelerator) for file in (files.exported, files.dense))

    names = [operator.name for operator in read_operators(files.exported.content).operators]

    def largest(size: Callable[[Layer], int]) -> tuple[Part, ...]:
        return _largest(Part(names[layer.operator], size(layer)) for layer in pruned.layers)

    return Footprint(
        runtime=pruned.name,
        estimated=True,
        flash_bytes=pruned.storage_bytes,
        dense_flash_bytes=dense.storage_bytes,
        arena_bytes=pruned.sram_bytes,
        dense_arena_bytes=dense.sram_bytes,
        arena_beside_bytes=None,
        decode_bytes=0,
        num_compared=0,
        num_equal=0,
        instructions={},
        npu_cycles=Pair(dense.cycles, pruned.cycles),
        flash_largest=largest(lambda layer: layer.weight_bytes),
        ram_largest=largest(lambda layer: layer.sram_bytes),
        layers=tuple(
            LayerFootprint(
                name=names[after.operator],
                kind=after.kind,
                storage="compressed" if after.weight_bytes else "",
                size_bytes=Pair(before.weight_bytes, after.weight_bytes),
                work=Pair(before.cycles, after.cycles),
            )
            for before, after in compare(dense, pruned)
        ),
    )


def measure_cortex_m(files: Files, boards: Sequence[str]) -> Footprint:
    """Generates C from a file, and runs it on emulated boards, and beside it TFLM.

    TFLM has TFLite's reference kernels as they were; LiteRT 2.3 rounds once in FULLY_CONNECTED where they round twice,
    and differs by a step now and then.

    Raises:
        InputError: a program is not installed, or C cannot be generated.
    """
    content = files.exported.content
    sources, dense = generate_c(content), generate_c(files.dense.content, storage="dense")
    built = {board: (build(files.dense.content, dense, board), build(content, sources, board)) for board in boards}
    dense_first, first = built[boards[0]]
    images = files.images[:_EMULATED_IMAGES]
    equal = _count_equal(first.run(images), TFLM(settle_operators(content)).run(images))
    return Footprint(
        runtime=first.name,
        estimated=False,
        flash_bytes=first.sizes.flash_bytes,
        dense_flash_bytes=dense_first.sizes.flash_bytes,
        arena_bytes=sources.arena_bytes + _count_ends(content),
        dense_arena_bytes=dense.arena_bytes + _count_ends(files.dense.content),
        arena_beside_bytes=None,
        decode_bytes=0,
        num_compared=len(images),
        num_equal=equal,
        instructions={board: Pair(*(int(each.measure()) for each in pair)) for board, pair in built.items()},
        npu_cycles=None,
        flash_largest=_largest(Part(layer.name, layer.size_bytes) for layer in sources.layers),
        ram_largest=_largest_in_ram(read_operators(content)),
        layers=tuple(
            LayerFootprint(
                name=after.name,
                kind=after.kind,
                storage=after.storage,
                size_bytes=Pair(before.size_bytes, after.size_bytes),
                work=Pair(before.estimated_instructions, after.estimated_instructions),
            )
            for before, after in zip(dense.layers, sources.layers, strict=True)
        ),
    )


def build(content: bytes, sources: CSources, board: str) -> CortexM:
    """C that was generated from a file, on an emulated board.

    Raises:
        InputError: as `CortexM`.
    """
    network = read_network(content)
    inputs, outputs = (
        [End(tensor.shape, (tensor.scale, tensor.zero_point)) for tensor in ends]
        for ends in (network.inputs, network.outputs)
    )
    return CortexM(sources.files, inputs, outputs, board=board)


def require_measure(target: str) -> None:
    """Checks, before the long work, that what measures a target's files is installed; raises InputError."""
    if (require := _REQUIRED.get(target)) is not None:
        require()


def require_runnable(job: JobConfig, content: bytes) -> bytes:
    """Checks, before the long work, that the target can run the unpruned network.

    Args:
        job: of any target.
        content: the network as a dense .tflite file in the job's quantization.

    Returns:
        The file as the target runs it.

    Raises:
        InputError: it cannot.
    """
    if job.target.name == "tflm":
        content = settle_operators(content)
        runtime = TFLM(content)
        runtime.run(np.zeros((1, *runtime.input_shape[1:]), np.float32))  # some operators refuse types only then
    elif job.target.name == "cortex_m":
        generate_c(content, storage="dense")
    return content


def measure(job: JobConfig, files: Files) -> Footprint:
    """What the file of a job takes whose target is a microcontroller.

    Raises:
        InputError: something is not installed, or cannot run or judge a file.
    """
    if job.target.name == "tflm":
        return measure_tflm(files)
    if job.target.name == "ethos_u":
        return measure_ethos_u(files, job.accelerator)
    return measure_cortex_m(files, job.boards)


def keeps_to_budgets(job: JobConfig, footprint: Footprint) -> bool:
    """Whether flash and RAM are within the job's budgets, where it has any."""
    return _say_excess(job, footprint.flash_bytes, footprint.arena_bytes) is None


def complain_of(job: JobConfig, file: ExportedFile) -> str | None:
    """What the job's budgets of flash and RAM must be for a file, in words; None where it keeps to them.

    Raises:
        InputError: something is not installed, or cannot judge the file.
    """
    return _say_excess(job, *_NEEDS[job.target.name](job, file.content))


def _say_excess(job: JobConfig, flash_bytes: int, ram_bytes: int) -> str | None:
    taken = ("flash_budget", flash_bytes, job.flash_budget), ("ram_budget", ram_bytes, job.ram_budget)
    beyond = [each for each in taken if each[2] is not None and each[1] > each[2]]
    if not beyond:
        return None
    least = " and ".join(f"--{flag} must be at least {size}" for flag, size, _ in beyond)
    return f"{least}. Received: {' '.join(f'--{flag}={budget}' for flag, _, budget in beyond)}"


def _need_tflm(_: JobConfig, content: bytes) -> tuple[int, int]:
    return len(content), find_arena(content)


def _need_ethos_u(job: JobConfig, content: bytes) -> tuple[int, int]:
    estimated = estimate(content, job.accelerator)
    return estimated.storage_bytes, estimated.sram_bytes


def _need_cortex_m(job: JobConfig, content: bytes) -> tuple[int, int]:
    sources = generate_c(content)
    flash_bytes = build(content, sources, job.boards[0]).sizes.flash_bytes if job.flash_budget else 0
    return flash_bytes, sources.arena_bytes + _count_ends(content)


def _count_ends(content: bytes) -> int:
    """Bytes of inputs and outputs: generated C leaves them to the caller, an interpreter has them in its arena."""
    network = read_network(content)
    return sum(tensor.size for tensor in (*network.inputs, *network.outputs))


_NEEDS: Mapping[str, Callable[[JobConfig, bytes], tuple[int, int]]] = {
    "tflm": _need_tflm,
    "ethos_u": _need_ethos_u,
    "cortex_m": _need_cortex_m,
}


def _require_cortex_m() -> None:
    require_toolchain()
    require_tflm()


_REQUIRED: Mapping[str, Callable[[], object]] = {
    "tflm": require_tflm,
    "ethos_u": require_vela,
    "cortex_m": _require_cortex_m,
}


def _count_equal(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.count_nonzero((first == second).reshape(len(first), -1).all(axis=1)))


def _largest(parts: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: -part.size_bytes)[:_MOST_NAMED])


def _largest_in_ram(graph: OperatorGraph) -> tuple[Part, ...]:
    return _largest(Part(operator.name, _bytes_around(operator, graph)) for operator in graph.operators)


def _bytes_around(operator: Operator, graph: OperatorGraph) -> int:
    """Bytes that must be in RAM while an operator runs: what it reads and computes, and weights that were expanded."""
    values = [graph.values[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return sum(_size_bytes(value) for value in values if not value.constant or value.storage == "bitmap")


def _describe_weights(operator: Operator, graph: OperatorGraph) -> LayerFootprint:
    """What the constants of an operator take in a file with bitmaps."""
    constants = [graph.values[index] for index in operator.inputs if index >= 0 and graph.values[index].constant]
    weights = next((value for value in constants if value.storage == "bitmap"), constants[0] if constants else None)
    sizes = {value.index: _size_bytes(value) for value in constants}
    stored = {
        value.index: bitmap_format.measure(value.num_elements, value.num_elements - value.num_zeros, 1)
        for value in constants
        if value.storage == "bitmap"
    }
    return LayerFootprint(
        name=operator.name,
        kind=operator.kind,
        storage=weights.storage if weights else "",
        size_bytes=Pair(sum(sizes.values()), sum((sizes | stored).values())),
        work=None,
    )


def _size_bytes(value: Value) -> int:
    return value.num_elements * np.dtype(value.dtype).itemsize
