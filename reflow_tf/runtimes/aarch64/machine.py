"""An emulated 64-bit ARM machine in the cache: Debian's Python for it, the ARM wheels, and QEMU to run them.

No root, no container and no debootstrap: packages are resolved, fetched and verified by apt with an index of its own
(so Debian's signatures vouch for them), and unpacked into a folder that QEMU looks into first. Whatever the versions
of Debian's packages are today, the wheels are pinned by their checksums.
"""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from reflow_tf.errors import InputError
from reflow_tf.runtimes import installation
from reflow_tf.runtimes.aarch64.cpus import CPUS, DEFAULT_CPU, Cpu

SET_UP = "python -m reflow_tf.tools.setup_runtime --runtime=aarch64"

_TO_RUN = {"qemu-aarch64": "qemu-user"}
_TO_SET_UP = {**_TO_RUN, "gcc": "gcc libc6-dev", "apt-get": "apt", "dpkg-deb": "dpkg"}
_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
_PYTHON = "usr/bin/python3.11"
# XNNPACK chooses among kernels by the core's part number, which its cpuinfo library reads here
# (https://github.com/pytorch/cpuinfo, src/arm/linux). QEMU shows the guest these files instead of the host's.
_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 38.40
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part:#05x}
CPU revision\t: 4
"""
_ONE_CPU = {"possible": "0\n", "present": "0\n", "kernel_max": "0\n"}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCES = f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian bookworm main\n"
# Which wheels pip may take: https://peps.python.org/pep-0600/
_PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_34_aarch64")
_PIP_OPTIONS = (
    *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--no-deps", "--no-compile"),
    *(f"--platform={platform}" for platform in _PLATFORMS),
    *("--quiet", "--disable-pip-version-check", "--require-hashes"),
)
_GCC_OPTIONS = ("-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")

# apt reads the machine's own configuration first (there may be a proxy in it), and this after it. The hooks of Debian's
# container images would delete the packages that have just been fetched.
_APT_CONFIGURATION = """\
APT::Architecture "arm64";
APT::Architectures "arm64";
APT::Install-Recommends "false";
APT::Sandbox::User "{user}";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "-";
Dir::Etc::PreferencesParts "-";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"""


class Machine:
    """The emulated machine, set up.

    Args:
        folder: as `set_up` fills it.
        cpu: that QEMU plays.
    """

    def __init__(self, folder: pathlib.Path, cpu: Cpu = CPUS[DEFAULT_CPU]):
        self._folder = folder
        self.cpu = cpu

    @functools.cached_property
    def name(self) -> str:
        """'QEMU', its version and the CPU that it plays."""
        version = installation.call(["qemu-aarch64", "--version"], "Asking QEMU for its version")
        return f"QEMU {version.split('version ')[1].split()[0]} as {self.cpu.name}"

    def python(
        self,
        arguments: Sequence[str],
        folder: pathlib.Path,
        counted: pathlib.Path | None = None,
        watches: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs the guest's Python to its end; NumPy and the TFLite runtimes can be imported.

        Args:
            arguments: of Python. Paths are the host's.
            folder: to run in; a guest that crashes may leave a core file there.
            counted: a file for the number of instructions executed so far, at each call of `os.getpgid`, one a line.
            watches: and for what ran and was fetched in between, as count_instructions.c says.
        """
        plugin: list[str] = []
        if counted is not None:
            caches = [f"cache={size}:{ways}" for size, ways in self.cpu.caches] if watches else []
            options = ",".join([str(self._folder / "count_instructions.so"), *caches])
            plugin = ["-plugin", options, "-d", "plugin", "-D", str(counted)]
        root = self._folder / "cpus" / self.cpu.name
        # -S: no site-packages of the host, whose files QEMU shows the guest where its own folder has none.
        command = ["qemu-aarch64", "-cpu", self.cpu.name, "-L", str(root), *plugin]
        command += [str(root / _PYTHON), "-S", *arguments]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "errors": "replace"}
        return subprocess.run(command, cwd=folder, env=self._environment(), text=True, **streams)

    def _environment(self) -> Mapping[str, str]:
        """One thread and one seed, so that two runs execute the same instructions."""
        return {
            "PYTHONPATH": str(self._folder / "wheels"),
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
        }


def is_set_up() -> bool:
    """Whether the machine is in the cache and QEMU is installed."""
    return _folder().is_dir() and not installation.missing_programs(["qemu-aarch64"])


def find_machine(cpu: str = DEFAULT_CPU) -> Machine:
    """The machine in the cache, with a CPU of `CPUS`.

    Raises:
        InputError: there is no such CPU, or the machine is not there; the message says how to bring it.
    """
    if cpu not in CPUS:
        raise InputError(f"--cpu must be one of {', '.join(CPUS)}. Received: {cpu}")
    installation.require_programs(_TO_RUN, "The aarch64 runtime")
    if not _folder().is_dir():
        raise InputError(f"The aarch64 runtime must be set up, once: {SET_UP}. Received: no folder {_folder()}")
    return Machine(_folder(), CPUS[cpu])


def set_up() -> pathlib.Path:
    """Brings the machine into the cache, if it is not there, and returns its folder.

    Raises:
        InputError: a program is not installed, there is no connection, or Debian or PyPI gave something else than what
            their signatures and our checksums promise.
    """
    if _folder().is_dir():
        installation.require_programs(_TO_RUN, "The aarch64 runtime")
        return _folder()
    if not sys.platform.startswith("linux"):
        raise InputError(f"The aarch64 runtime needs Linux. Received: {sys.platform}")
    installation.require_programs(_TO_SET_UP, "Setting up the aarch64 runtime")
    if not pathlib.Path(_KEYRING).is_file():
        raise InputError(
            f"Setting up the aarch64 runtime needs Debian's keys: apt-get install -y debian-archive-keyring. "
            f"Received: no file {_KEYRING}"
        )
    return installation.install(_folder().name, _build)


def _folder() -> pathlib.Path:
    cpus = [_CPUINFO, *(f"{cpu.name} {cpu.part} {cpu.features}" for cpu in CPUS.values())]
    settings = "\n".join((*_PACKAGES, _SOURCES, _APT_CONFIGURATION, *_PIP_OPTIONS, *_GCC_OPTIONS, *cpus))
    digest = installation.digest_of(settings, _data("requirements.txt"), _data("count_instructions.c"))
    return installation.cache_folder() / f"aarch64-{digest}"


def _data(name: str) -> bytes:
    return resources.files("reflow_tf.runtimes.aarch64").joinpath(name).read_bytes()


def _build(folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(prefix="reflow_tf.") as name:
        workplace = pathlib.Path(name)
        _compile_plugin(folder, workplace)
        _unpack_debian(folder / "root", workplace)
        _unpack_wheels(folder / "wheels", workplace)
        for cpu in CPUS.values():
            _show_cpu(folder / "cpus" / cpu.name, cpu, folder / "root")
        _try_out(Machine(folder), workplace)


def _try_out(machine: Machine, workplace: pathlib.Path) -> None:
    """Runs what everything else relies on, once; from then on Python's byte code is in the cache, too."""
    for module in ("ai_edge_litert", "tflite_runtime"):
        done = machine.python(["-c", f"import json, argparse, resource, numpy, {module}.interpreter"], workplace)
        if done.returncode:
            raise InputError(f"The guest must import {module}. Received: {done.stderr.strip()[-500:]}")
    counted = workplace / "counted"
    done = machine.python(["-c", "import os; os.getpgid(0); os.getpgid(0)"], workplace, counted)
    if done.returncode or not counted.is_file() or len(counted.read_text().split()) != 2:
        raise InputError(
            f"QEMU must take plugins of API version 1, as the 7.2 of Debian 12 does. "
            f"Received: {done.stderr.strip()[-500:]}"
        )


def _compile_plugin(folder: pathlib.Path, workplace: pathlib.Path) -> None:
    source = workplace / "count_instructions.c"
    source.write_bytes(_data(source.name))
    command = ["gcc", *_GCC_OPTIONS, "-o", str(folder / "count_instructions.so"), str(source)]
    installation.call(command, "Compiling QEMU's plugin", workplace)


def _unpack_debian(root: pathlib.Path, workplace: pathlib.Path) -> None:
    apt = workplace / "apt"
    for inner in ("state/lists/partial", "cache/archives/partial"):
        (apt / inner).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(_SOURCES)
    user = "root" if os.geteuid() == 0 else ""  # apt's own user cannot see a private folder
    (apt / "apt.conf").write_text(_APT_CONFIGURATION.format(folder=apt, user=user))
    command = ["apt-get", "-c", str(apt / "apt.conf"), "-qq", "-y"]
    installation.call([*command, "update"], "Reading Debian's list of packages", workplace)
    installation.call([*command, "--download-only", "install", *_PACKAGES], "Fetching Debian's packages", workplace)
    root.mkdir()
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        installation.call(["dpkg-deb", "-x", package, root], "Unpacking Debian's packages", workplace)
    if not (root / _PYTHON).exists():
        raise InputError(f"Debian's packages must bring {_PYTHON}. Received: {', '.join(_PACKAGES)} without it")


def _show_cpu(view: pathlib.Path, cpu: Cpu, root: pathlib.Path) -> None:
    """What the guest sees as its root: the unpacked packages, and a machine with one such CPU."""
    (view / "proc").mkdir(parents=True)
    (view / "proc/cpuinfo").write_text(_CPUINFO.format(features=cpu.features, part=cpu.part))
    one_cpu = view / "sys/devices/system/cpu"
    one_cpu.mkdir(parents=True)
    for name, text in _ONE_CPU.items():
        (one_cpu / name).write_text(text)
    for place in root.iterdir():
        (view / place.name).symlink_to(os.path.relpath(place, view))


def _unpack_wheels(target: pathlib.Path, workplace: pathlib.Path) -> None:
    requirements = workplace / "requirements.txt"
    requirements.write_bytes(_data(requirements.name))
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"Setting up the aarch64 runtime needs pip. Received: none for {sys.executable}")
    where = [f"--target={target}", f"--requirement={requirements}"]
    command = [sys.executable, "-m", "pip", "install", *_PIP_OPTIONS, *where]
    installation.call(command, "Fetching the ARM wheels", workplace)
