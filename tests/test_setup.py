import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from lib import ROOT

CARD = {"torch", "torchvision", "jupyterlab", "papermill", "matplotlib", "seaborn", "nbstripout", "torchattacks"}
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
    keys = re.search(r"STRIP_KEYS := (.*)", (ROOT / "Makefile").read_text()).group(1)
    notebooks = [str(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", keys, *notebooks]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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
