import ast
import sys

import pytest

from lib import ROOT

FILES = sorted((ROOT / "lib").rglob("*.py"))
LAYERS = [
    {"errors", "papermill_default_output"},
    {
        "losses",
        "models",
        "checkpoints",
        "progress",
        "data",
        "weights",
        "watch",
        "folding",
        "processes",
        "benchmark",
        "meter",
    },
    {"attacks", "store"},
    {"methods", "cw2", "jsma", "strategies", "trajectory", "landscape", "autoattack", "engine"},
    {"train"},
    {"spec"},
    {"evaluate", "calibrated"},
    {"parameters", "runs", "plain", "released"},
    {"cost", "checked", "table", "render"},
    {"execute", "classifier"},
    {"experiment"},
    {"report", "speed"},
    {"figures"},
]
"""What stands higher may be imported by what stands lower in this list, never the other way round."""
TORCH_ONLY = {
    "losses",
    "attacks",
    "cw2",
    "jsma",
    "methods",
    "models",
    "train",
    "strategies",
    "watch",
    "weights",
    "folding",
    "engine",
    "meter",
}


def room(path):
    return path.relative_to(ROOT / "lib").parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "lib":
            yield from (f"lib.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_room_has_its_layer():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_points_back(path):
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lib" and len(parts) > 1 and parts[1] in layer and parts[1] != room(path):
            assert layer[parts[1]] < layer[room(path)], f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in TORCH_ONLY], ids=lambda path: path.stem)
def test_the_methods_own_code_needs_torch_and_nothing_else(path):
    foreign = {name.split(".")[0] for name in imports(path)} - {"lib", "torch", *sys.stdlib_module_names}
    assert not foreign


def test_torchvision_is_imported_inside_the_loaders_only():
    found = {room(path) for path in FILES if any(name.startswith("torchvision") for name in imports(path))}
    at_top = [
        path
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if ast.unparse(node).startswith("from torchvision")
    ]
    assert (found, at_top) == ({"data"}, [])
