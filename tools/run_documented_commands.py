"""Runs every command and every Python snippet of README.md and docs/, page by page, in fresh folders.

    python tools/run_documented_commands.py
    python tools/run_documented_commands.py --pages=report,python

Two readers share the pages, each with a folder and the results of the README's opening command, and read what they read
in order: a page relies on that command, and on nothing of other pages.

`stand_ins` makes what a page calls the reader's own (my_model.keras, photos/). Blocks run as they are shown, but for
three things, each of which is said on the way: lines that `documented_commands` exempts are left out, with the reason;
a line that its reader ran before, on another page, is not run again; and a prune, compare or frontier with the embedded
images scores and calibrates on fewer (`--eval_data`, `--calibration_samples`). `.ci/run` runs the README's two commands
in full.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import documented_commands as documented
import stand_ins
from absl import app, flags
from documented_commands import Block

FLAGS = flags.FLAGS
flags.DEFINE_list("pages", [], "Only these pages, and first the README's opening command, whose results they use.")
flags.DEFINE_string("folder", None, "Where to work, and leave everything. Default: a temporary folder, deleted.")
flags.DEFINE_integer("readers", 2, "So many read at a time.", lower_bound=1)

_OPENING = "python -m reflow_tf.tools.prune --model=mobilenet_v2"
_PRUNES = re.compile(r"^python -m reflow_tf\.tools\.(prune|compare|frontier) (?!.*--help)")
_FEW = "few_images"
_NUM_SCORED, _NUM_CALIBRATING = 200, 32
REFUSED = 2


class Reader:
    """Somebody who types what the pages say, in `folder`.

    Attributes:
        said: what is to be told of it, line by line.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.said: list[str] = []
        self._typed: set[str] = set()
        python = pathlib.Path(sys.executable).parent
        self._environment = os.environ | {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def prepare(self) -> None:
        stand_ins.make(self._folder)
        stand_ins.make_few_images(self._folder / _FEW, _NUM_SCORED)
        (self._folder / "benchmarks").symlink_to(documented.ROOT / "benchmarks")
        self._run(["bash", "-euo", "pipefail", "-c", self._lighten(_OPENING)], "the README's opening command")
        self._typed.add(_OPENING)

    def copy(self, folder: pathlib.Path) -> "Reader":
        """Another one, who has read as much, in a folder of their own."""
        shutil.copytree(self._folder, folder, symlinks=True, dirs_exist_ok=True)
        other = Reader(folder)
        other._typed = set(self._typed)
        return other

    def follow(self, page: pathlib.Path) -> list[str]:
        """Runs the blocks of a page; returns what failed."""
        failed, snippets = [], []
        for block in documented.blocks(page):
            if block.language == "python":
                snippets.append(block)
            else:
                problems = [self._type(command, block) for command in block.commands]
                failed += [problem for problem in problems if problem]
        if snippets:
            code = "\n".join(block.text for block in snippets)
            problem = self._run([sys.executable, "-c", code], f"{snippets[0].place} and what follows, as Python")
            failed += [problem] if problem else []
        return failed

    def _type(self, command: str, block: Block) -> str | None:
        if (reason := documented.exemption(command)) is not None:
            self.said.append(f"  left out        {block.place}: {command} ({reason})")
            return None
        if command in self._typed:
            self.said.append(f"  ran before      {block.place}: {command}")
            return None
        if _PRUNES.match(command):
            self._typed.add(command)
        return self._run(["bash", "-euo", "pipefail", "-c", self._lighten(command)], block.place, block.error)

    def _lighten(self, command: str) -> str:
        """The command with fewer images, where it would take the embedded ones."""
        if not _PRUNES.match(command) or "--data=" in command or "--flagfile=" in command:
            return command
        return f"{command} --eval_data={_FEW} --calibration_samples={_NUM_CALIBRATING}"

    def _run(self, command: list[str], place: str, error: str | None = None) -> str | None:
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        seconds = time.monotonic() - started
        wanted = REFUSED if error else 0
        good = done.returncode == wanted and (error or "") in done.stderr
        self.said.append(f"  {'ok' if good else 'FAILED':6} {seconds:5.1f} s  {place}: {command[-1].splitlines()[0]}")
        if good:
            return None
        expected = f"{wanted}, and {error!r}" if error else wanted
        return f"{place}: exit code {done.returncode}; right: {expected}\n{command[-1]}\n{done.stdout}\n{done.stderr}"


def share(pages: Sequence[pathlib.Path], readers: Sequence[Reader]) -> list[str]:
    """Who is done with a page takes the next one that has most commands of their own pages; returns what failed."""
    left = {page: _list_long_commands(page) for page in pages}
    typed: dict[Reader, set[str]] = {reader: set() for reader in readers}
    turn = threading.Lock()

    def read(reader: Reader) -> list[str]:
        failed: list[str] = []
        while True:
            with turn:
                if not left:
                    return failed
                mine = typed[reader]
                theirs = set().union(*typed.values()) - mine
                page = min(left, key=lambda page: len(left[page] & theirs) - len(left[page] & mine))
                mine |= left.pop(page)
            failed += reader.follow(page)
            with turn:
                print("\n".join([str(page.relative_to(documented.ROOT)), *reader.said]), flush=True)
            reader.said.clear()

    with concurrent.futures.ThreadPoolExecutor(len(readers)) as pool:
        return [problem for problems in pool.map(read, readers) for problem in problems]


def _list_long_commands(page: pathlib.Path) -> set[str]:
    """Those that a reader types once, whatever pages they are on."""
    return {command for block in documented.blocks(page) for command in block.commands if _PRUNES.match(command)}


def main(_: list[str]) -> None:
    names = [page.stem for page in documented.pages()]
    if unknown := set(FLAGS.pages) - set(names):
        raise app.UsageError(f"--pages must be of {', '.join(names)}. Received: {', '.join(sorted(unknown))}")
    chosen = [page for page in documented.pages() if not FLAGS.pages or page.stem in FLAGS.pages]
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(FLAGS.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "0").mkdir(parents=True, exist_ok=True)
        first = Reader(folder / "0")
        first.prepare()
        readers = [first, *(first.copy(folder / str(number)) for number in range(1, FLAGS.readers))]
        failed = share(chosen, readers)
    print(f"{len(chosen)} pages in {time.monotonic() - started:.0f} s, {len(failed)} failed")
    if failed:
        sys.exit("\n\n".join(failed))


if __name__ == "__main__":
    app.run(main)
