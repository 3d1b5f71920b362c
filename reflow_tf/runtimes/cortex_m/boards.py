"""The boards that QEMU plays, one for each kind of Cortex-M that pruned networks run on."""

from collections.abc import Sequence
from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class Region:
    """A stretch of memory.

    Attributes:
        address: of its first byte.
        size_bytes: how long it is.
    """

    address: int
    size_bytes: int


@dataclass(frozen=True)
class Board:
    """An emulated board.

    Attributes:
        name: 'm4', as users spell it.
        cpu: 'cortex-m4'.
        machine: QEMU's name of the board.
        flags: of GCC, for this CPU with all that it has for small integers.
        vectors: where the CPU looks for its stack and its first instruction.
        flash: for code and constants. The boards have RAM there, or a ROM, and QEMU fills both.
        ram: for everything else, and the stack.
    """

    name: str
    cpu: str
    machine: str
    flags: Sequence[str]
    vectors: Region
    flash: Region
    ram: Region


# Addresses: QEMU's hw/arm/mps2.c and hw/arm/mps2-tz.c, after Arm's application notes AN385, AN386, AN500 and AN547.
_VECTORS = Region(0, 0x400)
_SSRAM1 = Region(_VECTORS.size_bytes, 4 * _MIB - _VECTORS.size_bytes)
_SSRAM23 = Region(0x2000_0000, 4 * _MIB)

BOARDS = {
    board.name: board
    for board in (
        Board("m3", "cortex-m3", "mps2-an385", ("-mcpu=cortex-m3", "-mfloat-abi=soft"), _VECTORS, _SSRAM1, _SSRAM23),
        Board(
            "m4",
            "cortex-m4",
            "mps2-an386",
            ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
            _VECTORS,
            _SSRAM1,
            _SSRAM23,
        ),
        Board(
            "m7",
            "cortex-m7",
            "mps2-an500",
            ("-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard"),
            _VECTORS,
            _SSRAM1,
            _SSRAM23,
        ),
        # cortex-m55 without a suffix has Helium (MVE), integer and float.
        Board(
            "m55",
            "cortex-m55",
            "mps3-an547",
            ("-mcpu=cortex-m55", "-mfloat-abi=hard"),
            _VECTORS,
            Region(0x2800_0000, 8 * _MIB),
            Region(0x2100_0000, 4 * _MIB),
        ),
    )
}
