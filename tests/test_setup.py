import re
import subprocess
import sys
import tomllib

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


def test_ruff_finds_nothing():
    for command in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_function_is_typed_and_mypy_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
