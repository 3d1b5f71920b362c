"""Writes the BUILD files of the package from what its modules really import, so that nobody edits them by hand.

    python tools/write_build_files.py            # writes
    python tools/write_build_files.py --check    # only says which files are out of date; exit code 1 if any is

Every module is a target of its own; a module that can be run is a `py_binary`. The target named after the folder holds
the package's `__init__.py` and the data files that ship with it. A module depends on what it imports, at the top or
inside a function, and on every module or package that it names in a string (`importlib.import_module("reflow_tf.x")`,
`resources.files("reflow_tf.report")`). As in Python, the `__init__.py` files above a module come along unsaid.

Needs nothing but Python. `tests/test_architecture.py` reads the same files with code of its own.
"""

import argparse
import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "reflow_tf"
# Import name -> name on PyPI, where they differ by more than a hyphen.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "ethosu": "ethos-u-vela"}
HEADER = '''"""Written by tools/write_build_files.py; do not edit."""

'''


def find_modules(root):
    """Dotted name -> file, for every module and package."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_data(folder):
    """The files that belong to the package in this folder and are not code, sorted."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").exists():
            found += [inner for inner in sorted(path.rglob("*")) if inner.is_file()]
        elif path.is_file() and path.suffix not in (".py", ".md") and path.name != "BUILD":
            found.append(path)
    return [path.relative_to(folder).as_posix() for path in found if not path.name.startswith(".")]


def find_names(tree, modules):
    """Every dotted name that a module may import, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SystemExit(f"line {node.lineno}: imports are absolute in this package")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield from [node.value] * (node.value in modules)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            yield from (f"{PACKAGE}.{home}" for home in ast.literal_eval(node.value).values())


def find_deps(name, modules):
    """The labels of what a module imports, in buildifier's order: this folder, this repository, PyPI."""
    labels = set()
    for imported in find_names(ast.parse(modules[name].read_text(encoding="utf-8")), modules):
        top = imported.partition(".")[0]
        if top == PACKAGE:
            while imported not in modules:
                imported = imported.rpartition(".")[0]
            if imported != name:
                labels.add(label(imported, modules, package_of(name, modules)))
        elif top not in sys.stdlib_module_names:
            labels.add("@pypi//" + DISTRIBUTIONS.get(top, top).lower().replace("-", "_"))
    return sorted(labels, key=lambda text: (":/@".index(text[0]), text.split(":")))


def package_of(name, modules):
    return name if modules[name].name == "__init__.py" else name.rpartition(".")[0]


def label(name, modules, seen_from):
    package = package_of(name, modules)
    target = name.rpartition(".")[2]
    if package == seen_from:
        return f":{target}"
    folder = "//" + package.replace(".", "/")
    return folder if package == name else f"{folder}:{target}"


def is_runnable(path):
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def write_list(key, values):
    if not values:
        return ""
    if len(values) == 1:
        return f'    {key} = ["{values[0]}"],\n'
    return f"    {key} = [\n" + "".join(f'        "{value}",\n' for value in values) + "    ],\n"


def write_target(name, modules):
    path = modules[name]
    rule = "py_binary" if is_runnable(path) else "py_library"
    data = find_data(path.parent) if path.name == "__init__.py" else []
    text = f'{rule}(\n    name = "{name.rpartition(".")[2]}",\n' + write_list("srcs", [path.name])
    return text + write_list("data", data) + write_list("deps", find_deps(name, modules)) + ")\n"


def write_package(package, modules):
    """The text of one BUILD file: the package's own target first, then its modules by name."""
    members = [package] + [name for name in modules if name != package and package_of(name, modules) == package]
    targets = [write_target(name, modules) for name in members]
    rules = sorted({target.partition("(")[0] for target in targets})
    loads = "".join(f'load("@rules_python//python:{rule}.bzl", "{rule}")\n' for rule in rules)
    visibility = 'package(default_visibility = ["//visibility:public"])\n'
    return HEADER + loads + "\n" + "\n".join([visibility, *targets])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    check = parser.parse_args().check
    modules = find_modules(ROOT)
    wanted = {
        path.parent / "BUILD": write_package(name, modules)
        for name, path in modules.items()
        if path.name == "__init__.py"
    }
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
