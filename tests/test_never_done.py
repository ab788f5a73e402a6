"""What is never done, line by line of CONTRIBUTING's list."""

import ast
import re

import pytest

from lib import ROOT
from lib.errors import UserError
from lib.experiment.parameters import Loader, read_yaml

FILES = sorted((ROOT / "lib").rglob("*.py"))
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "torch.hub"}


def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in lib: its file, what is called, and the call."""
    nodes = [(path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text()))]
    return [(path.name, ast.unparse(node.func), node) for path, node in nodes if isinstance(node, ast.Call)]


def given(call: ast.Call, name: str) -> str:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), "")


def test_no_process_is_replaced_or_spawned_and_nothing_comes_from_torchs_hub():
    never = ("os.exec", "os.spawn", "os.posix_spawn", "os.startfile", "pty.", "torch.hub.")
    assert not [(file, called) for file, called, _ in calls() if called.startswith(never)]


def test_no_text_is_run_as_code():
    never = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"}
    assert not [(file, called) for file, called, _ in calls() if called in never]


def test_no_shell_is_started_and_git_is_the_only_other_program():
    assert not [file for file, _, call in calls() if given(call, "shell")]
    started = [(file, call) for file, called, call in calls() if called.startswith("subprocess.") and "(" not in called]
    assert [(file, ast.unparse(call.args[0])) for file, call in started] == [("networks.py", "['git', *arguments]")]


def test_a_pickle_is_read_by_torchs_reader_of_plain_values_or_after_its_digest_was_the_official_one():
    loads = [(file, called, call) for file, called, call in calls() if called.split(".")[-1] in ("load", "loads")]
    assert {given(call, "weights_only") for _, called, call in loads if called == "torch.load"} == {"True"}
    assert {given(call, "allow_pickle") for _, called, call in loads if called == "np.load"} == {"False"}
    assert [file for file, called, _ in loads if called.startswith("pickle.")] == ["sources.py"]


def test_yaml_makes_plain_values_only(tmp_path):
    assert {ast.unparse(call.args[1]) for _, called, call in calls() if called == "yaml.load"} == {"Loader"}
    (tmp_path / "x.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'victim'}']")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "x.yaml")
    assert not (tmp_path / "victim").exists()
    assert not [tag for tag in Loader.yaml_constructors if tag and "python" in tag]


def test_only_a_download_and_a_cluster_that_were_asked_for_reach_the_network():
    imported = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                imported |= {(path.name, name) for name in names}
    network = NETWORK | {"ray"}
    found = {(file, name) for file, name in imported if name in network or name.split(".")[0] in network}
    assert found == {("cluster.py", "socket"), ("cluster.py", "ray")}
    planning = (ROOT / "lib" / "experiment" / "planning.py").read_text()
    assert planning.count("run_on_cluster(") == 1
    assert 'if parameters.executor == "ray":' in planning
    assert [file for file, _, call in calls() if given(call, "download") == "True"] == ["sources.py"]


def test_no_archive_is_unpacked():
    assert not [
        file for file, called, _ in calls() if called.split(".")[-1] in ("extract", "extractall", "unpack_archive")
    ]


def test_every_line_of_the_list_names_a_test_that_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## What is never done")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(lines) >= 6
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line)
        assert named, line
        assert all(f"def {name}(" in tests for name in named), line
