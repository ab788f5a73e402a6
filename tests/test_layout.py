import ast
import sys

import pytest

from lib import ROOT

FILES = sorted((ROOT / "lib").rglob("*.py"))
ROOMS = [
    *("errors", "files", "losses", "models", "data", "attacks"),
    *("methods", "train", "evaluate", "benchmark", "experiment", "report"),
]
"""The twelve rooms: each may import those that stand before it, and itself."""
TORCH_ONLY = {"losses", "attacks", "methods", "models", "train"}


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


def test_lib_has_twelve_rooms_nine_of_them_folders():
    assert {room(path) for path in FILES} == {*ROOMS, "__init__"}
    assert sum(path.parent == ROOT / "lib" for path in FILES) == 4
    assert len({path.parent for path in FILES} - {ROOT / "lib"}) == 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_up(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lib" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != room(path):
            assert ROOMS.index(parts[1]) < ROOMS.index(room(path)), f"{path} imports {name}"


def modules_imported_by(path):
    """The modules of lib that `path` imports when it is imported, faces aside."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                file = ROOT / (name.replace(".", "/") + ".py")
                if file.exists():
                    yield file


def test_no_modules_import_each_other_in_a_circle():
    arrows, done = {path: set(modules_imported_by(path)) for path in FILES}, set()
    while free := {path for path, wanted in arrows.items() if path not in done and wanted <= done}:
        done |= free
    assert not set(FILES) - done


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_at_most_300_lines_and_a_function_45(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_in_a_dialect_of_our_own(path):
    tree = ast.walk(ast.parse(path.read_text()))
    names = {getattr(node, kind, None) for node in tree for kind in ("id", "attr", "arg", "name")}
    assert not names & {"told", "said", "asked", "heard", "spared", "levers", "watch", "also"}


def test_lib_is_thin():
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= 11_000


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in TORCH_ONLY], ids=lambda path: path.stem)
def test_the_methods_own_code_needs_torch_and_nothing_else(path):
    allowed = {"lib", "torch", *sys.stdlib_module_names}
    allowed |= {"safetensors"} if path.stem in ("checkpoints", "autoattack") else set()
    allowed |= {"pyautoattack"} if path.stem == "autoattack" else set()
    assert not {name.split(".")[0] for name in imports(path)} - allowed


def test_torchvision_is_imported_inside_the_loaders_only():
    found = {room(path) for path in FILES if any(name.startswith("torchvision") for name in imports(path))}
    at_top = [
        path
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if ast.unparse(node).startswith("from torchvision")
    ]
    assert (found, at_top) == ({"data"}, [])
