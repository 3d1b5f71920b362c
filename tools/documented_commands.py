"""What README.md and docs/ tell people to type: blocks of shell and of Python, page by page, in reading order.

A block is fenced and marked `sh` or `python`; the README's first, indented one holds the two commands that `.ci/run`
reads and runs in fresh environments. A `text` block that begins with `error:` behind an `sh` block is what that must
say, with exit code 2.
"""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
INDEX = ROOT / "docs" / "index.md"

_FENCE = re.compile(r"^```(\w+|\{[\w-]+\})?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TOCTREE = re.compile(r"```\{toctree\}\n(?::.*\n)*\n((?:\w+\n)+)```")
_HEADING = re.compile(r"# .+\n\n")

# Lines that `run_documented_commands` leaves to others, and why.
EXEMPT = {
    r"\bpip install\b": "an installation: .ci/run makes fresh environments",
    r"\bapt-get install\b": "a system package: .ci/run installs it",
    r"\bsetup_runtime\b": "a download: .ci/run sets runtimes up",
    r"--weights=\S+\.safetensors\b": "needs ImageNet's images and weights, and hours",
    r"--model=mobilenet_imagenet\.keras\b": "needs ImageNet's images and weights, and an hour",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: where it stands.
        line: of its fence, from 1.
        language: 'sh' or 'python'.
        text: what is in it.
        error: what the command has to say on stderr, where it is shown as refused.
    """

    page: pathlib.Path
    line: int
    language: str
    text: str
    error: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its lines, those that end in a backslash joined with the next; one text where they make up a program."""
        text = re.sub(r"\\\n\s*", "", self.text)
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return ["\n".join(lines)] if any(line[0].isspace() for line in lines) else lines


def pages() -> list[pathlib.Path]:
    """README.md, then the pages of docs/ in the order of their table of contents."""
    names = "".join(_TOCTREE.findall(INDEX.read_text(encoding="utf-8"))).split()
    return [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in names)]


def blocks(page: pathlib.Path) -> list[Block]:
    """The shell and Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in _FENCE.finditer(text):
        language, inside = fence[1], fence[2]
        if language == "text" and inside.startswith("error:") and found:
            found[-1] = dataclasses.replace(found[-1], error=inside.strip())
        elif language in ("sh", "python"):
            found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, inside))
    return found


def two_commands() -> list[str]:
    """The lines of the README's first indented block."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    end = next(number for number in range(first, len(lines)) if not lines[number].startswith("    "))
    return [line.strip() for line in lines[first:end]]


def opens_with_command(page: pathlib.Path) -> bool:
    """Whether the first thing under the title is a command."""
    text = page.read_text(encoding="utf-8")
    heading = _HEADING.match(text)
    return heading is not None and text.startswith("```sh\n", heading.end())


def exemption(command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((reason for pattern, reason in EXEMPT.items() if re.search(pattern, command)), None)
