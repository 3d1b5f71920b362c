"""The ARM CPUs that are emulated: what tells them apart for XNNPACK, and what an estimate of cycles needs to know."""

import dataclasses
from collections.abc import Mapping

LINE_BYTES = 64
"""Of every cache here: what is fetched at once."""

_LEVEL_BYTES_PER_CYCLE = 16  # between two caches: 128 bits, as Arm's reference manuals of these cores say


@dataclasses.dataclass(frozen=True)
class Cpu:
    """A CPU, on a board that many people have.

    Attributes:
        name: as QEMU and `--cpu` spell it.
        part: its number in /proc/cpuinfo, by which XNNPACK chooses kernels that were written for it.
        features: as Linux names them there.
        model: of LLVM's scheduling models (llvm-mca's `-mcpu`), which are made from Arm's optimization guides.
        board: whose caches and memory these are.
        gigahertz: of the board's core.
        caches: bytes and ways of each, the nearest first; the last may be shared by all cores.
        memory_gigabytes: a second, at most, of the board's memory.
    """

    name: str
    part: int
    features: str
    model: str
    board: str
    gigahertz: float
    caches: tuple[tuple[int, int], ...]
    memory_gigabytes: float

    @property
    def bytes_per_cycle(self) -> tuple[float, ...]:
        """What can be fetched into each cache, the nearest first.

        From memory, half of what its data sheet promises: on a Raspberry Pi 4 STREAM reaches 5.5 of 12.8 GB/s
        (https://www.sci-pi.org.uk/bench/stream.html).
        """
        between = (float(_LEVEL_BYTES_PER_CYCLE),) * (len(self.caches) - 1)
        return (*between, self.memory_gigabytes / 2 / self.gigahertz)


_PLAIN = "fp asimd evtstrm crc32 cpuid"
_KIB = 1024

_ALL = (
    # In order. llvm-mca has no faithful model of it: its own stalls wherever a load follows a multiplication, which
    # the core does not. The A55 is the next of its line, with the same two-wide pipeline.
    Cpu(
        "cortex-a53",
        *(0xD03, _PLAIN, "cortex-a55", "Raspberry Pi 3B+", 1.4),
        caches=((32 * _KIB, 4), (512 * _KIB, 16)),
        memory_gigabytes=3.6,  # LPDDR2-900, 32 bits
    ),
    Cpu(
        "cortex-a72",
        *(0xD08, _PLAIN, "cortex-a72", "Raspberry Pi 4", 1.5),
        caches=((32 * _KIB, 2), (1024 * _KIB, 16)),
        memory_gigabytes=12.8,  # LPDDR4-3200, 32 bits
    ),
    # Dot products of int8 and float16 arithmetic, as phones since 2018 have. The Neoverse N1 is the same core.
    Cpu(
        "cortex-a76",
        *(0xD0B, f"{_PLAIN} atomics fphp asimdhp asimdrdm asimddp", "neoverse-n1", "Snapdragon 855", 2.84),
        caches=((64 * _KIB, 4), (512 * _KIB, 8), (2048 * _KIB, 16)),
        memory_gigabytes=34.1,  # LPDDR4X-4266, 64 bits
    ),
)
CPUS: Mapping[str, Cpu] = {cpu.name: cpu for cpu in _ALL}
DEFAULT_CPU = "cortex-a76"
