import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl import flags

from .sample import MCU, sample_report

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """Name of a script in tools/ -> its module."""

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(TOOLS)  # it imports its neighbour
            patch.setattr(flags, "DEFINE_string", lambda *_, **__: None)  # its flags must not meet those of others
            specification.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """The report of a run like a real one; keywords as `sample.sample_report`."""
    return sample_report


@pytest.fixture(
    params=[
        {},
        {"labelled": False},
        {"labelled": False, "has_classes": False},
        {"num_classes": 1000},
        {"num_classes": 3},
        {"num_kernels": 3, "batch_norms": False},
        {"num_kernels": 1},
        {"sparsity": 0.0, "collapsed_before": False},
        {"collapsed_after": True},
        {"eligible": False, "timed": False},
        {"timed": False},
        {"repair": "none", "collapsed_after": True, "max_accuracy_drop": None},
        {"repair": "auto"},
        {"budget": {"name": "min_speedup", "value": 1.8, "estimate": 1.81, "measured": 1.6, "passed": False}},
        {"mcu": MCU},
        {"name": "/models/" + "very_long_folder_name/" * 12 + "model.keras", "prefix": "outer/inner/" * 15},
    ],
    ids=lambda keywords: "-".join(keywords) or "usual",
)
def any_report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return sample_report(**request.param)
