"""GCC for Cortex-M: the C sources of a model and our few files around them become an image for a board, weighed."""

import bisect
import functools
import os
import pathlib
import re
import string
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources

from reflow_tf.errors import InputError, failure_of
from reflow_tf.runtimes import installation
from reflow_tf.runtimes.cortex_m.boards import Board

OPTIMISATIONS = ("-O3", "-O2", "-Os")
STACK_BYTES = 256 * 1024

_PURPOSE = "The cortex_m runtime"
_NEWLIB, _NEWLIB_PACKAGE = "nano.specs", "libnewlib-arm-none-eabi"
_COMPILER = f"gcc-arm-none-eabi {_NEWLIB_PACKAGE}"
_PROGRAMS = {
    **dict.fromkeys(("arm-none-eabi-gcc", "arm-none-eabi-nm", "arm-none-eabi-size"), _COMPILER),
    "qemu-system-arm": "qemu-system-arm",
    "gcc": "gcc libc6-dev",  # for QEMU's plugin
}
_OWN_SOURCES = ("startup.c", "main.c")
_COMPILER_OPTIONS = ("-std=gnu11", "-mthumb", "-ffunction-sections", "-fdata-sections")
_LINKER_OPTIONS = ("-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments")
_COMPLAINT = re.compile(r"error: (?!ld returned)|undefined reference|overflowed|will not fit")
_IN_FLASH = (".vectors", ".text", ".rodata", ".ARM.exidx", ".data")
_IN_RAM = (".data", ".bss")


@dataclass(frozen=True)
class Sizes:
    """What an image takes, the stack left out.

    Attributes:
        flash_bytes: code, constants and initial values of the model's own sources, as far as they are used.
        ram_bytes: variables of the model's own sources.
        image_flash_bytes: of everything: with the startup code, semihosting and what the C library brings.
        image_ram_bytes: of everything: with one input and one output.
    """

    flash_bytes: int
    ram_bytes: int
    image_flash_bytes: int
    image_ram_bytes: int


@dataclass(frozen=True)
class Function:
    """A function of an image.

    Attributes:
        address: of its first instruction.
        size_bytes: with the constants behind its code; 0 where hand-written assembly does not say.
        name: the symbol's.
    """

    address: int
    size_bytes: int
    name: str


@dataclass(frozen=True)
class Image:
    """A program for a board.

    Attributes:
        board: that it was built for.
        elf: the file.
        sizes: what it takes.
        functions: in the order of addresses.
    """

    board: Board
    elf: bytes
    sizes: Sizes
    functions: Sequence[Function]

    def address_of(self, name: str) -> int:
        """Where one of the functions begins."""
        return next(function.address for function in self.functions if function.name == name)

    def function_at(self, address: int) -> Function | None:
        """The last function that begins there or before; None if there is none."""
        place = bisect.bisect_right(self.functions, address, key=lambda function: function.address)
        return self.functions[place - 1] if place else None


def require_toolchain() -> None:
    """Checks that the compilers, the C library and the emulator are installed.

    Raises:
        InputError: something is missing; the message holds the line that installs it.
    """
    installation.require_programs(_PROGRAMS, _PURPOSE)
    if not pathlib.Path(_ask_compiler(f"-print-file-name={_NEWLIB}")).is_absolute():
        raise InputError(
            f"{_PURPOSE} needs a C library: apt-get install -y --no-install-recommends {_NEWLIB_PACKAGE}. "
            f"Received: an arm-none-eabi-gcc without {_NEWLIB}"
        )


def compiler_name() -> str:
    """'GCC' and its version."""
    return f"GCC {_ask_compiler('-dumpfullversion')}"


def build_image(
    files: Mapping[str, str], board: Board, num_input_bytes: int, num_output_bytes: int, optimisation: str = "-O3"
) -> Image:
    """Compiles and links a model for a board.

    Args:
        files: name -> text of the C sources and headers, 'model.h' among them; names may have folders, and includes are
            looked for from the outermost one.
        board: to build for.
        num_input_bytes: of one sample; model.h must agree.
        num_output_bytes: of one output; model.h must agree.
        optimisation: of `OPTIMISATIONS`.

    Raises:
        InputError: a program is missing, the sources do not compile, or they do not fit the board's memory.
    """
    if optimisation not in OPTIMISATIONS:
        raise InputError(f"The optimisation must be one of {', '.join(OPTIMISATIONS)}. Received: {optimisation}")
    require_toolchain()
    with tempfile.TemporaryDirectory(prefix="reflow_tf.") as name:
        folder = pathlib.Path(name)
        model = _write_sources(files, folder)
        for source in (*_OWN_SOURCES, "semihosting.h"):
            (folder / source).write_bytes(data_file(source))
        (folder / "board.ld").write_text(linker_script(board))
        expected = f"-DEXPECTED_INPUT_BYTES={num_input_bytes}", f"-DEXPECTED_OUTPUT_BYTES={num_output_bytes}"
        options = (*board.flags, *_COMPILER_OPTIONS, optimisation, "-Isources", *expected)
        objects = _compile((*model, *_OWN_SOURCES), options, folder)
        _call(["gcc", *options, *_LINKER_OPTIONS, "-T", "board.ld", *objects, "-o", "image.elf"], "Linking", folder)
        return Image(board, (folder / "image.elf").read_bytes(), _weigh(folder), _list_functions(folder))


def data_file(name: str) -> bytes:
    """A file of this folder."""
    return resources.files("reflow_tf.runtimes.cortex_m").joinpath(name).read_bytes()


def _write_sources(files: Mapping[str, str], folder: pathlib.Path) -> list[str]:
    """Writes the model's files; returns the names of those to compile, relative to the folder."""
    if "model.h" not in files:
        raise InputError(f"A model's sources must have a file model.h. Received: {', '.join(files) or 'none'}")
    for name, text in files.items():
        path = pathlib.PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"A source's name must be a path below the model's own folder. Received: {name}")
        target = folder / "sources" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "model").mkdir()
    return [f"sources/{name}" for name in files if name.endswith(".c")]


def linker_script(board: Board) -> str:
    """Where code, constants and variables go on a board."""
    regions = {"vectors": board.vectors, "flash": board.flash, "ram": board.ram}
    numbers = {f"{name}_address": region.address for name, region in regions.items()}
    numbers |= {f"{name}_bytes": region.size_bytes for name, region in regions.items()}
    return string.Template(data_file("board.ld.in").decode()).substitute(numbers, stack_bytes=STACK_BYTES)


def _compile(sources: Sequence[str], options: Sequence[str], folder: pathlib.Path) -> list[str]:
    """Compiles each source; objects of the model go to model/, where the linker script finds them."""

    def compile_one(source: str) -> str:
        owner = "model/" if source.startswith("sources/") else ""
        target = owner + source.removeprefix("sources/").replace("/", "_") + ".o"
        _call(["gcc", *options, "-c", source, "-o", target], f"Compiling {source.removeprefix('sources/')}", folder)
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, sources))


def _weigh(folder: pathlib.Path) -> Sizes:
    lines = _call(["size", "-A", "image.elf"], "Weighing the image", folder).splitlines()
    sections = {
        fields[0]: int(fields[1]) for fields in map(str.split, lines) if len(fields) == 3 and fields[1].isdigit()
    }

    def total(names: Sequence[str], owner: str) -> int:
        return sum(sections.get(f"{owner}{name}", 0) for name in names)

    own = [f"_{name.removeprefix('.')}" for name in _IN_FLASH], [f"_{name.removeprefix('.')}" for name in _IN_RAM]
    flash, ram = total(own[0], ".model"), total(own[1], ".model")
    return Sizes(flash, ram, flash + total(_IN_FLASH, ""), ram + total(_IN_RAM, ""))


def _list_functions(folder: pathlib.Path) -> list[Function]:
    said = _call(["nm", "-n", "-S", "--defined-only", "image.elf"], "Listing the image's functions", folder)
    functions = []
    for line in said.splitlines():
        address, *size, kind, name = line.split()
        if kind in "tTwW":
            functions.append(Function(int(address, 16), int(size[0], 16) if size else 0, name))
    return functions


@functools.cache
def _ask_compiler(question: str) -> str:
    return installation.call(["arm-none-eabi-gcc", question], "Asking GCC").strip()


def _call(arguments: Sequence[str], purpose: str, folder: pathlib.Path) -> str:
    """Runs one of GCC's tools in a folder and returns what it printed; InputError quotes its first complaints."""
    command = [f"arm-none-eabi-{arguments[0]}", *arguments[1:]]
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        complaints = [line for line in lines if _COMPLAINT.search(line)] or lines[-4:]
        said = " | ".join(complaints[:4])
        raise failure_of(done.returncode, f"{purpose} failed: {command[0]} must succeed. Received: {said}")
    return done.stdout
