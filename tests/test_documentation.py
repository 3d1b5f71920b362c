"""README.md and docs/: short enough, every page opens with a command, and what is named is there.

What the commands do is tried by `tools/run_documented_commands.py`, which takes minutes.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TEXTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
SCRIPT = re.compile(r"\b(benchmarks|tools)/(?:\w+/)*\w+\.py\b")
MODULE = re.compile(r"\breflow_tf\.tools\.(\w+)")
# A figure with a unit, a share of dense, or a bare number: what a table of measurements is made of.
FIGURE = re.compile(r"\**\d[\d,.]*(?: ?(?:%|ms|s|x|M|k|B|MB|MiB|GB))?(?: \(.*\))?\**")


def load_tool(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


documented = load_tool("documented_commands")
PAGES = documented.pages()
BLOCKS = [block for page in PAGES for block in documented.blocks(page)]


def shown(path):
    return str(path.relative_to(ROOT))


def tables(text):
    """Each table, and the words around it: the last paragraph before it that is no table, and the next one."""
    parts = text.split("\n\n")
    for number, part in enumerate(parts):
        if part.lstrip("\n").startswith("|"):
            before = [other for other in parts[:number] if not other.startswith("|")][-1:]
            yield part.strip() + "\n", "\n".join([*before, part, *parts[number + 1 : number + 2]])


def is_measured(table):
    """Whether more than a third of the cells right of the first column are figures."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    cells = [cell for row in rows for cell in row[1:] if cell]
    return sum(bool(FIGURE.match(cell)) for cell in cells) > len(cells) / 3


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_begins_with_two_commands():
    assert documented.two_commands() == [
        "pip install . && python -m reflow_tf.tools.prune --model=mobilenet_v2",
        "pip install '.[test]' && pytest",
    ]


def test_every_page_is_in_the_table_of_contents():
    assert set(PAGES) == {ROOT / "README.md", *DOCS.glob("*.md")} - {DOCS / "index.md"}
    assert len(PAGES) == len(set(PAGES))


@pytest.mark.parametrize("page", PAGES[1:], ids=shown)
def test_every_page_opens_with_a_command(page):
    assert documented.opens_with_command(page)


@pytest.mark.parametrize("page", TEXTS, ids=shown)
def test_links_lead_somewhere(page):
    links = [link for link, _ in LINK.findall(page.read_text(encoding="utf-8"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=shown)
def test_every_measured_table_names_what_makes_it(page):
    for table, around in tables(page.read_text(encoding="utf-8")):
        if is_measured(table):
            assert SCRIPT.search(around) or MODULE.search(around), table.splitlines()[0]


@pytest.mark.parametrize("page", TEXTS, ids=shown)
def test_scripts_and_tools_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    scripts = {match[0] for match in SCRIPT.finditer(text)} | {
        f"reflow_tf/tools/{name}.py" for name in MODULE.findall(text)
    }
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_refusals_are_quoted_as_they_are():
    """What stands in quotes in the left column of docs/refusals.md occurs in a message."""
    rows = re.findall(r"^\| ([^|]*) \|", (DOCS / "refusals.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [fragment for row in rows for fragment in re.findall(r'"([^"]+)"', row)]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "reflow_tf").rglob("*.py"))
    texts = "\0".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(quoted) > 30
    assert [fragment for fragment in quoted if fragment not in texts] == []


def test_tables_of_measurements_are_recognised():
    head = "| | dense | file |\n|---|---|---|\n"
    assert is_measured(head + "| MobileNetV2 | 118.3 | 88.4 (1.34x) |\n")
    assert is_measured(head + "| 70 % | 63.1 -> 93.5 | **9.5** -> 71.5 |\n")
    assert not is_measured(head + "| `uniform` | the same share | in every layer |\n")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=lambda block: block.place)
def test_documented_flags_exist(block):
    for command in block.commands:
        for call in re.findall(r"python -m (reflow_tf\.tools\.\w+[^\n|&;>]*)", command):
            module, *arguments = shlex.split(call)
            own = importlib.import_module(module).FLAGS
            named = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
            assert [name for name in named if name not in own and name != "flagfile"] == []


def test_blocks_are_read_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```sh\n# why\nfirst --a=1 \\\n    --b=2\nsecond\n```\n\n```text\nerror: no\n```\n\n"
        "```sh\nif true; then\n  third\nfi\n```\n\n```text\nwords\n```\n"
    )
    first, program = documented.blocks(page)
    assert first.commands == ["first --a=1 --b=2", "second"]
    assert (first.place, first.error, program.error) == ("page.md:3", "error: no", None)
    assert program.commands == ["if true; then\n  third\nfi"]
    assert documented.opens_with_command(page)


@pytest.mark.parametrize("command", ["pip install '.[web]'", "apt-get install make", "true && pip install ."])
def test_installations_are_left_out_with_a_reason(command):
    assert documented.exemption(command)


def test_most_commands_are_run():
    commands = [command for block in BLOCKS if block.language == "sh" for command in block.commands]
    assert len(commands) > 30
    assert sum(documented.exemption(command) is not None for command in commands) < len(commands) / 5


def test_the_picture_shows_the_run_that_the_readme_tells_of():
    picture = ElementTree.parse(DOCS / "images" / "collapse.svg").getroot()
    words = " ".join(picture.itertext()).replace("\u00a0", " ")
    (table,) = [table for table in TABLE.findall((ROOT / "README.md").read_text()) if table.startswith("| stage")]
    told = re.findall(r"^\| (dense|pruned|repaired)\b.*?\| (\d+\.\d %)", table, re.MULTILINE)
    assert len(told) == 3
    assert all(f"{top1} {stage}" in words for stage, top1 in told)
    assert "prefers-color-scheme: dark" in words


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Somebody who types what a page says, without stand-ins: `reader(text)` gives what failed."""
    load_tool("stand_ins")
    tool = sys.modules.get("run_documented_commands") or load_tool("run_documented_commands")
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    typing = tool.Reader(tmp_path)

    def follow(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        failed = typing.follow(page)
        print(*typing.said)
        return failed

    return follow


def test_what_a_page_says_is_done(reader, tmp_path, capsys):
    text = (
        "```sh\npip install . && touch installed\ntouch first \\\n    second\n```\n\n"
        "```sh\necho 'error: no. Received: 1' >&2 && exit 2\n```\n\n```text\nerror: no.\n```\n\n"
        '```python\nnumber = 3\n```\n\n```python\nopen("third", "w").write(str(number))\n```\n'
    )
    assert reader(text) == []
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "first", "second", "third"}
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nfalse\n```\n",
        "```sh\nfalse | true\n```\n",
        "```sh\ntrue\n```\n\n```text\nerror: no.\n```\n",
        "```sh\necho 'error: yes.' >&2 && exit 2\n```\n\n```text\nerror: no.\n```\n",
        "```python\nassert False\n```\n",
    ],
)
def test_what_does_not_do_as_the_page_says_is_told(reader, text):
    (problem,) = reader(text)
    assert problem.startswith("page.md:1")
