"""The house: what the modules import, what BUILD and setup.cfg say about it, and the floors must be one story.

BUILD files are out of date? `python tools/write_build_files.py` writes them. The floors are not: they are the plan.
"""

import ast
import configparser
import dataclasses
import fnmatch
import graphlib
import importlib
import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reflow_tf"
FACADE = "__init__"


@dataclasses.dataclass(frozen=True)
class Room:
    """A folder or module of the package.

    Attributes:
        floor: imports point to lower floors only.
        reach: the highest floor it may import from.
        beside: rooms on its own floor that it may import.
    """

    floor: int
    reach: int
    beside: tuple[str, ...] = ()


# tensorflow-datasets 4.9.10 imports importlib_resources but requires it only before Python 3.9.
NEEDED_BY_OTHERS = {"importlib_resources"}

ROOMS = {
    "errors": Room(0, -1),
    "crew": Room(0, -1),
    "foreign": Room(0, -1, beside=("errors",)),
    "native_stderr": Room(0, -1),
    "stopwatch": Room(0, -1),
    "task": Room(0, -1),
    "user_code": Room(0, -1, beside=("errors", "foreign")),
    "keras_backend": Room(0, -1, beside=("errors", "foreign")),
    "sparsity": Room(0, -1, beside=("errors", "foreign")),
    "targets": Room(1, 0),
    "data": Room(1, 0),
    "cluster": Room(1, 0),
    "choices": Room(2, 1),
    "config": Room(2, 1, beside=("choices",)),
    "job_config": Room(2, 1, beside=("choices", "config")),
    "models": Room(2, 1),
    "repair": Room(3, 2),
    "signal": Room(3, 2),
    "sensitivity": Room(4, 3),
    "narrowing": Room(4, 3),
    "export": Room(4, 2),
    "runtimes": Room(4, 1),
    "report": Room(5, 0),
    "planning": Room(5, 4),
    "pruning": Room(5, 4, beside=("planning",)),
    "single_steps": Room(5, 4),
    FACADE: Room(6, 5, beside=("jobs",)),
    "jobs": Room(6, 5),
    "tools": Room(7, 6),
}

NUMPY_ONLY = {"sparsity", "targets"}
NUMPY_AND_GRAPHS = {"numpy", "rustworkx"}
FRAMEWORKS = {"tensorflow", "keras"}
NO_FRAMEWORK = {name for name, room in ROOMS.items() if room.floor < 2} | {
    "choices",
    "config",
    "job_config",
    "report",
    FACADE,
}
# Imports of a framework, or of what brings one along, that are allowed above only because they wait for their call.
LAZY = {("reflow_tf.keras_backend", "keras"), ("reflow_tf.data.tfds", "tensorflow_datasets")}
# What a person can start without waiting for TensorFlow.
LIGHT = (
    *(
        "reflow_tf",
        "reflow_tf.job_config",
        "reflow_tf.keras_backend",
        "reflow_tf.data.loading",
        "reflow_tf.report.page",
    ),
    *("reflow_tf.report.terminal", "reflow_tf.sparsity.plan", "reflow_tf.targets.selection"),
    *("reflow_tf.tools.prune", "reflow_tf.tools.evaluate", "reflow_tf.tools.explain", "reflow_tf.tools.benchmark"),
    *("reflow_tf.tools.compare", "reflow_tf.tools.device_kit", "reflow_tf.tools.setup_runtime"),
    *(
        "reflow_tf.tools.firmware",
        "reflow_tf.tools.frontier",
        "reflow_tf.tools.rewrite",
        "reflow_tf.jobs.frontier.candidates",
    ),
)

DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "ai_edge_litert": "ai-edge-litert",
    "ethosu": "ethos-u-vela",
    "tflite_micro": "tflite-micro",
    "tensorflow_datasets": "tensorflow-datasets",
}
# What others have, that tools/ and benchmarks/ compare with, in environments of their own that they say how to make.
INDEPENDENT = {
    *("torch", "torchvision", "timm", "torch_pruning", "efficientnet_lite_pytorch"),
    "tensorflow_model_optimization",
}
TOOL_EXTRAS = {"test", "dev", "docs"}  # every other extra is an optional integration


@dataclasses.dataclass(frozen=True)
class Import:
    """What one statement, or one string, refers to; `name` is a module of ours or the top name of a third party."""

    name: str
    is_ours: bool
    is_lazy: bool


def file_of(name):
    """The file of a module or package of ours; None if there is none."""
    stem = ROOT.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = sorted({path.parent for path in MODULES.values()})


def spelled_names(node):
    """The dotted names in one node of the syntax tree that may be modules."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(level=0, module=module, names=names):
            return [f"{module}.{alias.name}" for alias in names]
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
            return [name]
        case ast.Constant(value=str(text)) if re.fullmatch(r"reflow_tf(\.\w+)+", text):
            return [text] if file_of(text) else []
        case ast.Assign(targets=[ast.Name(id="_HOMES")], value=value):
            return [f"reflow_tf.{home}" for home in ast.literal_eval(value).values()]
    return []


def find_imports(path, node=None, is_lazy=False):
    """Every import of a file but the standard library's, wherever in the file it stands."""
    found = set()
    for child in ast.iter_child_nodes(node or ast.parse(path.read_text(encoding="utf-8"))):
        for name in spelled_names(child):
            top = name.partition(".")[0]
            if top == "reflow_tf":
                while file_of(name) is None:
                    name = name.rpartition(".")[0]
                found.add(Import(name, True, is_lazy))
            elif top not in sys.stdlib_module_names:
                found.add(Import(top, False, is_lazy))
        in_function = is_lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        found |= find_imports(path, child, in_function)
    return found


IMPORTS = {name: find_imports(path) for name, path in MODULES.items()}


def room_of(name):
    return name.split(".")[1] if "." in name else FACADE


def internal_imports(name):
    return {found.name for found in IMPORTS[name] if found.is_ours and found.name != name}


def distribution_of(top):
    return DISTRIBUTIONS.get(top, top).lower()


def read_build(folder):
    """The targets of a BUILD file as dicts of their arguments, with the rule under 'rule'."""
    targets = []
    for statement in ast.parse((folder / "BUILD").read_text(encoding="utf-8")).body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Expr(value=ast.Call(func=ast.Name(id="load"))):
                pass
            case ast.Expr(value=ast.Call(func=ast.Name(id="package"))):
                pass
            case ast.Expr(value=ast.Call(func=ast.Name(id=rule), args=[], keywords=keywords)):
                arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
                targets.append({"rule": rule, "data": [], "deps": [], **arguments})
            case _:
                raise AssertionError(f"{folder / 'BUILD'}: not understood: {ast.unparse(statement)}")
    return targets


def read_label(label, folder):
    """A label as the module or the distribution that it stands for, underscored as labels are."""
    if label.startswith("@pypi//"):
        return label
    place, _, target = label.removeprefix("//").partition(":")
    package = place.replace("/", ".") or name_of(folder / "__init__.py")
    return package if target in ("", package.rpartition(".")[2]) else f"{package}.{target}"


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def read_requirements(text):
    return {re.match(r"[\w-]+", line)[0].lower() for line in text.split("\n") if line.strip()}


def test_every_folder_of_code_is_a_package_with_a_build_file():
    missing = [
        folder / name for folder in FOLDERS for name in ("__init__.py", "BUILD") if not (folder / name).is_file()
    ]
    assert not missing
    assert sorted(path.parent for path in PACKAGE.rglob("BUILD")) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_each_module_is_one_target(folder):
    targets = read_build(folder)
    assert all(target["rule"] in ("py_library", "py_binary") for target in targets)
    stems = {path.stem: path.name for path in folder.glob("*.py")}
    stems[folder.name] = stems.pop("__init__")
    assert len(targets) == len(stems)
    assert {target["name"]: target["srcs"] for target in targets} == {stem: [name] for stem, name in stems.items()}
    runnable = {stem for stem, name in stems.items() if 'if __name__ == "__main__":' in (folder / name).read_text()}
    assert {target["name"] for target in targets if target["rule"] == "py_binary"} == runnable


def test_short_names_at_the_top_lead_to_targets():
    aliases = read_build(ROOT)
    assert {alias["rule"] for alias in aliases} == {"alias"}
    modules = {read_label(alias["actual"], ROOT) for alias in aliases}
    assert modules == {"reflow_tf", "reflow_tf.tools.prune", "reflow_tf.tools.evaluate"} and modules <= set(MODULES)


def test_data_in_build_files_is_what_is_there_and_what_ships(settings):
    there = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and path.name != "BUILD"
    }
    built = {
        (folder / name).relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for target in read_build(folder)
        for name in target["data"]
        if target["name"] == folder.name
    }
    assert built == there
    globs = {
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in settings["options.package_data"].items()
        for pattern in patterns.split()
    }
    assert {glob for glob in globs if not fnmatch.filter(there, glob)} == set(), "globs that match nothing"
    assert {path for glob in globs for path in fnmatch.filter(there, glob)} == there


@pytest.mark.parametrize("name", MODULES)
def test_dependencies_in_build_files_are_the_imports(name):
    folder, stem = MODULES[name].parent, name.rpartition(".")[2]
    (deps,) = [target["deps"] for target in read_build(folder) if target["name"] == stem]
    assert len(deps) == len(set(deps))
    third_parties = {found.name for found in IMPORTS[name] if not found.is_ours}
    labels = {f"@pypi//{distribution_of(top).replace('-', '_')}" for top in third_parties}
    assert {read_label(dep, folder) for dep in deps} == internal_imports(name) | labels


def test_every_room_is_on_a_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        folder.name for folder in FOLDERS if folder.parent == PACKAGE
    }
    assert rooms == set(ROOMS)


def test_imports_point_down():
    wrong = []
    for name in MODULES:
        room = ROOMS[room_of(name)]
        for imported in sorted(internal_imports(name)):
            other = room_of(imported)
            if other != room_of(name) and ROOMS[other].floor > room.reach and other not in room.beside:
                wrong.append(f"{name} (floor {room.floor}) imports {imported} (floor {ROOMS[other].floor})")
    assert not wrong


def test_the_table_of_floors_lets_nobody_look_up():
    for name, room in ROOMS.items():
        assert room.reach < room.floor, name
        assert all(ROOMS[other].floor == room.floor for other in room.beside), name
        unused = [other for other in room.beside if not any(uses(name, other))]
        assert not unused, f"{name} does not import {unused} and needs no leave to"


def uses(room, other):
    return (
        room_of(imported) == other for name in MODULES if room_of(name) == room for imported in internal_imports(name)
    )


def test_imports_are_acyclic():
    tuple(graphlib.TopologicalSorter({name: internal_imports(name) for name in MODULES}).static_order())


def test_imports_are_absolute():
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], name


def test_the_lower_floors_know_no_framework():
    wrong = []
    for name in MODULES:
        room = room_of(name)
        for found in IMPORTS[name]:
            if found.is_ours or (found.is_lazy and (name, found.name) in LAZY):
                continue
            if room in NUMPY_ONLY and found.name not in NUMPY_AND_GRAPHS:
                wrong.append(f"{name} imports {found.name}; {room} is NumPy and graphs alone")
            elif room in NO_FRAMEWORK and found.name in FRAMEWORKS | {"tensorflow_datasets"}:
                wrong.append(f"{name} imports {found.name}, which floor {ROOMS[room].floor} or {room} must not")
    assert not wrong


def test_light_modules_start_without_a_framework():
    heavy = FRAMEWORKS | {"torch", "dask", "distributed"}
    code = f"import sys, {', '.join(LIGHT)}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_nothing_leans_on_tfmot_but_what_trains_with_it():
    files = [
        *MODULES.values(),
        *(path for top in ("tests", "tools", "benchmarks") for path in (ROOT / top).rglob("*.py")),
    ]
    found = [path for path in files if "tensorflow_model_optimization" in {found.name for found in find_imports(path)}]
    assert [path.name for path in found] == ["train_sparse_with_tfmot.py"]


def test_requirements_are_the_third_parties_that_are_imported(settings):
    required = read_requirements(settings["options"]["install_requires"])
    extras = {name: read_requirements(text) for name, text in settings["options.extras_require"].items()}
    optional = set().union(*(names for name, names in extras.items() if name not in TOOL_EXTRAS))
    found = {imported for name in MODULES for imported in IMPORTS[name] if not imported.is_ours}
    assert {distribution_of(imported.name) for imported in found} == (required | optional) - NEEDED_BY_OTHERS
    assert not required & optional
    at_the_top = {distribution_of(imported.name) for imported in found if not imported.is_lazy}
    assert not at_the_top & optional, "an optional integration is imported when it is used, not before"


def test_extras_for_developers_are_used(settings):
    required = read_requirements(settings["options"]["install_requires"])
    extras = {name: read_requirements(text) for name, text in settings["options.extras_require"].items()}
    imported = {
        top: {
            distribution_of(found.name)
            for path in (ROOT / top).rglob("*.py")
            for found in find_imports(path)
            if not found.is_ours and not list((ROOT / top).rglob(f"{found.name}.py"))
        }
        for top in ("tests", "tools", "benchmarks")
    }
    optional = set().union(*(extras[name] for name in extras.keys() - TOOL_EXTRAS))
    # pytest-xdist is in pytest's options; the package itself stands for the extras that pip brings whole.
    assert imported["tests"] - required - optional == extras["test"] - {"pytest-xdist", "reflow_tf"}
    brought = re.search(r"reflow_tf\[(.*)\]", settings["options.extras_require"]["test"])[1].split(",")
    assert extras.keys() - TOOL_EXTRAS - set(brought) == {"tfds", "torch"}, "for these the tests have stand-ins"
    assert (imported["tools"] | imported["benchmarks"]) - INDEPENDENT <= required | extras["test"] | extras["dev"]
    commands = (ROOT / ".ci/run").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    unused = [name for name in extras["dev"] if not re.search(rf"(^|-m |/bin/|`){name}\b", commands, re.MULTILINE)]
    assert not unused


def test_distribution_names_are_right():
    installed = metadata.packages_distributions()
    found = {imported.name for name in MODULES for imported in IMPORTS[name] if not imported.is_ours}
    named = {top: {dist.lower().replace("_", "-") for dist in installed[top]} for top in found if top in installed}
    assert {"PIL", "absl", "ai_edge_litert"} <= set(named)
    assert [top for top, dists in named.items() if distribution_of(top) not in dists] == []


def test_contributing_shows_the_same_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", text, re.MULTILINE)
    shown = {int(floor): {Path(name).stem for name in re.findall(r"\[`(.+?)`\]", cell)} for floor, cell in rows}
    assert len(rows) == len(shown)
    assert shown == {
        floor: {name for name, room in ROOMS.items() if room.floor == floor} for floor in range(max(shown) + 1)
    }
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_nothing_of_dask_is_imported_before_workers_are_asked_for():
    dask = {"dask", "distributed"}
    imports = [(name, found) for name in MODULES for found in IMPORTS[name] if found.name in dask]
    assert {name for name, _ in imports} == {"reflow_tf.cluster.opening", "reflow_tf.cluster.site"}
    assert all(found.is_lazy for _, found in imports)
    code = f"import sys, reflow_tf.jobs.pipeline, reflow_tf.jobs.comparison; print({dask!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]


@pytest.mark.parametrize("folder", ["benchmarks", "tools", "examples"])
def test_scripts_import_what_there_is(folder):
    """Nobody runs all of them, and a name that moved would be missed by whoever runs one next."""
    missing = []
    for script in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reflow_tf"):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names if not _has(module, alias.name)]
                missing += [f"{script.name}: {node.module}.{name}" for name in names]
    assert missing == []


def _has(module, name):
    is_package = hasattr(module, "__path__")
    return hasattr(module, name) or (is_package and importlib.util.find_spec(f"{module.__name__}.{name}") is not None)
