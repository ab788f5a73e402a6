import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from nbformat.v4 import new_output
from packaging.requirements import Requirement

from lib import ROOT

CARD = {"torch", "torchvision", "jupyterlab", "papermill", "matplotlib", "seaborn", "nbstripout", "torchattacks"}
FILTER = ROOT / ".ci" / "strip_notebook.py"
KEYS = runpy.run_path(str(FILTER))["KEYS"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {line.split("==")[0]: line.split("==")[1].split()[0] for line in lines if re.match(r"[a-z0-9]", line)}


def test_environment_yml_names_the_eight_packages_beside_the_project_itself():
    given = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [d["pip"] for d in given if isinstance(d, dict)]
    assert set(pip) == CARD | {"-e ."}
    assert {name_of(d) for d in PROJECT["dependencies"]} >= CARD


def test_the_lock_holds_every_dependency_and_every_development_tool():
    wanted = {name_of(d) for d in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]}
    assert wanted <= set(locked())


def test_the_lock_satisfies_the_ranges_of_pyproject():
    versions = locked()
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[name_of(text)]), text


def test_the_lock_holds_names_versions_and_hashes_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "index" not in text
    assert text.count("--hash=sha256:") > len(locked())


def test_every_tracked_notebook_is_as_nbstripout_leaves_it():
    notebooks = [str(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", KEYS, *notebooks]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_filter_that_needs_no_environment_leaves_what_nbstripout_leaves(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "table1_dgad.ipynb", as_version=4)
    notebook.metadata.papermill = {"duration": 3}
    for i, cell in enumerate(notebook.cells):
        cell.metadata |= {"papermill": {"exception": False}, "execution": {"iopub": "now"}, "collapsed": True}
        if cell.cell_type == "code":
            cell.execution_count = i
            cell.outputs = [new_output("stream", text="größer ← than\n")]
    nbformat.write(notebook, tmp_path / "run.ipynb")
    run = (tmp_path / "run.ipynb").read_bytes()
    theirs = [sys.executable, "-m", "nbstripout", "--extra-keys", KEYS]
    expected = subprocess.run(theirs, input=run, capture_output=True, check=True).stdout
    ours = [sys.executable, "-I", str(FILTER)]
    assert subprocess.run(ours, input=run, capture_output=True, check=True).stdout == expected
    shown = subprocess.run([*ours, str(tmp_path / "run.ipynb")], capture_output=True, check=True).stdout
    assert shown == expected
    assert b"than" not in shown


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"cells": 3}', b"<<<<<<< HEAD\n"])
def test_the_filter_leaves_what_is_no_notebook_as_it_is(content):
    done = subprocess.run([sys.executable, "-I", str(FILTER)], input=content, capture_output=True, check=True)
    assert done.stdout == content


@pytest.fixture
def checkout(tmp_path):
    """A repository with this Makefile, a notebook, and `make`'s environment: an interpreter that does nothing."""
    root, python = tmp_path / "own", tmp_path / "python"
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(FILTER.parent, root / ".ci")
    for name in ("Makefile", ".gitattributes", ".gitignore", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "notebooks" / "table1_dgad.ipynb", root / "notebooks")
    for file in (python, root / ".venv" / "bin" / "python"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    return root


def call(root, *command, **given):
    """What a command prints in `root`; it has to end well and say nothing on stderr."""
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "MAKE"))} | identity
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, **given)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_git_adds_no_outputs_and_compares_notebooks_where_there_is_no_environment(checkout):
    call(checkout, "git", "init", "-q")
    call(checkout, "make", "-s", "env", f"PYTHON={checkout.parent / 'python'}")
    call(checkout, "git", "add", ".")
    call(checkout, "git", "commit", "-qm", "first")
    call(checkout, "git", "worktree", "add", "-q", "--detach", "../second")
    call(checkout, "make", "-s", "clean")
    for root in (checkout, checkout.parent / "second"):
        path = root / "notebooks" / "table1_dgad.ipynb"
        notebook = nbformat.read(path, as_version=4)
        next(cell for cell in notebook.cells if cell.cell_type == "code").outputs = [new_output("stream", text="42")]
        nbformat.write(notebook, path)
        assert call(root, "git", "diff") == ""
        call(root, "git", "add", ".")
        assert call(root, "git", "diff", "--cached") == ""
        assert "DGAD" in call(root, "git", "log", "-p", "--", "notebooks")


def test_the_configuration_of_a_repository_around_the_checkout_is_not_written(checkout):
    call(checkout.parent, "git", "init", "-q")
    call(checkout, "make", "-s", "env", f"PYTHON={checkout.parent / 'python'}")
    assert "nbstripout" not in (checkout.parent / ".git" / "config").read_text()


def test_make_hands_dollars_quotes_spaces_and_umlauts_on_as_a_shell_reads_them(checkout):
    papermill = checkout / ".venv" / "bin" / "papermill"
    papermill.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    papermill.chmod(0o755)
    (checkout / ".venv" / "ready").touch()
    arguments = ["-y", "rows: [\"DGAD (code)\", 'k=1']", "-p", "data_dir", "/bilder/größe $HOME $(x) #1", "-p", "x", ""]
    said = call(checkout, "make", "-s", "table1_dgad", f"ARGS={shlex.join(arguments)}").splitlines()
    assert said[-len(arguments) :] == arguments


def test_every_supported_python_is_named_alike():
    (lowest, above) = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    supported = f"3.{lowest} to 3.{int(above) - 1}"
    makefile = (ROOT / "Makefile").read_text()
    assert f"Python {supported}" in (ROOT / "README.md").read_text()
    assert f"Python {supported}" in makefile
    assert f"(3, {lowest}) <= sys.version_info < (3, {above})" in makefile


IMPORT_EVERY_MODULE = """
import importlib, pathlib, sys
import lib
folder = pathlib.Path(lib.__file__).parent
assert folder.parent == pathlib.Path(sys.argv[1]), folder
for path in sorted(folder.rglob("*.py")):
    importlib.import_module(".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"))
    print(path.relative_to(folder.parent))
from lib.errors import UserError
from lib.experiment import Parameters, open_table
try:
    open_table("table4_dgad", Parameters())
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_reads_tables_from_a_checkout_only(tmp_path):
    """Built from a copy, without the network, and installed into a fresh folder away from the checkout."""
    source, fresh = tmp_path / "source", tmp_path / "fresh"
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(fresh), str(wheel)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": str(fresh)
    }
    command = [sys.executable, "-P", "-c", IMPORT_EVERY_MODULE, str(fresh)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *modules, sentence = done.stdout.splitlines()
    assert modules == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "lib").rglob("*.py"))
    assert "checkout" in sentence
