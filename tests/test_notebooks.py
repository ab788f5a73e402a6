import ast
import json
import subprocess
import sys
from functools import partial

import nbformat
import pytest
import torch
import yaml
from small import SETTINGS
from test_checkpoints import Hostile

from lib import ROOT, benchmark
from lib.experiment.parameters import PARAMS, Parameters
from lib.experiment.your_model import Classifier
from lib.models import build

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLES = [path for path in NOTEBOOKS if (PARAMS / "tables" / f"{path.stem}.yaml").exists()]
DECLARED = {  # notebooks that are not about a table
    "benchmark_speed": benchmark.SpeedParameters,
    "speedrun_robust": partial(Parameters, seeds=[0, 1, 2]),
    "evaluate_your_model": Classifier,
}
PAPERMILL = (sys.executable, "-m", "papermill", "--no-progress-bar")


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def execute(path, outputs, *arguments: str, **given):
    usual = {"outputs": str(outputs), "device": "cpu", "workers": 1}
    given = {name: usual[name] for name in usual if hasattr(DECLARED.get(path.stem, Parameters)(), name)} | given
    copy = outputs / "executed.ipynb"
    command = [*PAPERMILL, str(path), str(copy), "-y", yaml.safe_dump(given), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, copy


def test_there_is_a_notebook_for_every_table_file_of_a_papers_item():
    files = (PARAMS / "tables").glob("*.yaml")
    of_papers = {path.stem for path in files if yaml.safe_load(path.read_text())["item"]}
    assert of_papers == {path.stem for path in TABLES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_its_cells_are_short_plain_statements(path):
    for cell in code_cells(path):
        assert cell.execution_count is None
        assert not cell.outputs
        assert len(cell.source.splitlines()) <= 12 or "parameters" in cell.metadata.get("tags", []), cell.source
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While) for node in nodes), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_explains_more_than_it_computes(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words > 200


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_declares_every_parameter_with_its_default_and_a_comment(path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    declared = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert declared == vars(DECLARED.get(path.stem, Parameters)())
    assert all("  # " in line for line in cell.source.splitlines())


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem not in DECLARED], ids=lambda path: path.stem)
def test_papermill_runs_every_notebook_and_a_table_leaves_its_table_and_figures(path, tmp_path):
    table = yaml.safe_load((PARAMS / "tables" / f"{path.stem}.yaml").read_text()) if path in TABLES else {"rows": []}
    rows = [row["row"] for row in (table["rows"][0], table["rows"][-1])] if table["rows"] else []
    done, copy = execute(path, tmp_path, rows=rows, students=table.get("students", [])[:1], settings=SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Unable to parse" not in done.stderr  # papermill reads the comments of the parameters' cell
    outputs = [out for cell in code_cells(copy) for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    if not rows:
        return
    saved = json.loads((tmp_path / "tables" / f"{path.stem}.json").read_text())
    assert {cell["row"] for cell in saved["cells"]} <= {*rows}
    assert all(cell["n"] for cell in saved["cells"])
    for suffix in ("csv", "md", "tex", "html"):
        assert (tmp_path / "tables" / f"{path.stem}.{suffix}").stat().st_size
    drawn = any("figures.save" in cell.source for cell in code_cells(path))
    assert (tmp_path / "figures" / f"{path.stem}.pdf").exists() == drawn


def test_papermill_evaluates_a_model_of_ones_own(tmp_path):
    notebook = ROOT / "notebooks" / "evaluate_your_model.ipynb"
    cheap = {"AA": {"images": 5, "stages": ["apgd-ce"]}, "PGD-50": {"steps": 3}, "PGD-20": {"steps": 2}}
    torch.save(build("ResNet10-w8", classes=10, channels=1).state_dict(), tmp_path / "mine.pt")
    given = {"weights": str(tmp_path / "mine.pt"), "model": "ResNet10-w8", "images": 20, "changes": cheap}
    done, copy = execute(notebook, tmp_path, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = json.loads((tmp_path / "tables" / "evaluate_your_model_mine.json").read_text())
    assert [len(a["flags"]) for a in saved["accuracies"]] == [20, 20, 20, 20, 20, 5]
    assert len(saved["findings"]) == 10
    shown = "".join(str(out.get("data", "")) for cell in code_cells(copy) for out in cell.outputs)
    assert "worst case over the attacks" in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "nowhere.pt"}, "there is no weights file"),
        ({"model": "ResNet19"}, "unknown model 'ResNet19'"),
        ({"changes": {"AA": {"image": 3}}}, "column AA has no 'image'"),
        ({"epsilon_255": 800.0}, "the radius lies in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_parameter_of_ones_own_model_ends_papermill_with_one_sentence(tmp_path, given, said):
    torch.save(build("ResNet8-w8", classes=10, channels=1).state_dict(), tmp_path / "mine.pt")
    given = {"weights": str(tmp_path / "mine.pt"), "images": 8} | given
    done, _ = execute(ROOT / "notebooks" / "evaluate_your_model.ipynb", tmp_path, **given)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("rows", [["DGAD", "DGAD (code)"], ["PGD-AT", "TRADES"]])
def test_a_released_form_runs_and_so_do_rows_without_a_teacher(tmp_path, rows):
    given = {"settings": SETTINGS, "students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
    path = ROOT / "notebooks" / "table4_dgad.ipynb"
    done, _ = execute(path, tmp_path, rows=rows, **given)
    assert done.returncode == 0, done.stderr[-3000:]


def test_las_ats_released_forms_run_beside_the_papers(tmp_path):
    rows = ["LBGAT", "LAS-TRADES", "LAS-AWP", *(f"LAS-{base} (code)" for base in ("AT", "TRADES", "AWP"))]
    done, _ = execute(ROOT / "notebooks" / "table2_las_at.ipynb", tmp_path, rows=rows, settings=SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("table1_las_at", {"rows": ["PGD-AT", "k=1", "Frozen"]}),
        ("fig4_las_at", {"rows": ["LAS-AT (k=1)", "Random"], "seeds": [0, 1]}),
        ("walkthrough_las_at", {"settings": {**SETTINGS, "precision": "bf16"}}),
    ],
    ids=["controls", "two seeds", "bf16"],
)
def test_what_las_ats_notebooks_advertise_runs(tmp_path, name, given):
    done, copy = execute(ROOT / "notebooks" / f"{name}.ipynb", tmp_path, **({"settings": SETTINGS} | given))
    assert done.returncode == 0, done.stderr[-3000:]
    if "seeds" in given:
        shown = "".join(str(out.get("data", "")) for cell in code_cells(copy) for out in cell.outputs)
        assert all(f"{row}, seed {seed}" in shown for row in given["rows"] for seed in given["seeds"])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("table1_dynat", {"rows": ["DYNAT", "DYNAT-Inner", "DYNAT-Inner-AWP (alpha=1)"]}),
        ("table2_dynat", {"rows": ["DYNAT-AWP (alpha=1)", "DYNAT-AWP (beta=1)"]}),
        ("table4_dynat", {"rows": ["MAIL", "MAIL-TRADES", "LBGAT", "MAIL (MSE)"]}),
        ("table1_d2r", {"rows": ["D2R-CAG", "D2R-CAG (as printed)"]}),
        ("table2_d2r", {"rows": ["D2R (alpha=30, beta=20)", "D2R (alpha=30, beta=0)", "D2R-CAG (sums over classes)"]}),
        ("fig2_d2r", {"rows": ["LBGAT", "LBGAT (guide frozen)"], "seeds": [0, 1]}),
        ("fig3_dynat", {"seeds": [0, 1]}),
        ("walkthrough_dynat", {"settings": {**SETTINGS, "precision": "bf16"}}),
        ("walkthrough_d2r", {"settings": {**SETTINGS, "precision": "bf16"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_dynats_and_d2rs_notebooks_advertise_runs(tmp_path, name, given):
    done, copy = execute(ROOT / "notebooks" / f"{name}.ipynb", tmp_path, **({"settings": SETTINGS} | given))
    assert done.returncode == 0, done.stderr[-3000:]
    if "seeds" in given:
        shown = "".join(str(out.get("data", "")) for cell in code_cells(copy) for out in cell.outputs)
        assert all(f"LBGAT, seed {seed}" in shown for seed in given["seeds"])


@pytest.mark.parametrize("harm", ["truncated", "hostile", "another network's"])
def test_a_bad_teacher_file_ends_papermill_with_one_sentence(tmp_path, harm):
    file = tmp_path / "teacher.pt"
    torch.save({"weight": Hostile(str(tmp_path / "victim"))} if harm == "hostile" else {"weight": torch.ones(3)}, file)
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    given = {"settings": SETTINGS, "students": ["ResNet18"], "teachers": ["WideResNet-34-10"], "rows": ["DGAD"]}
    path = ROOT / "notebooks" / "table4_dgad.ipynb"
    done, _ = execute(path, tmp_path, teacher_files={"WideResNet-34-10": str(file)}, **given)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("UserError: ")
    assert {"truncated": "damaged", "hostile": "refused", "another network's": "does not fit"}[harm] in last
    assert not (tmp_path / "victim").exists()
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "sclae", "gpu"], "unknown parameter 'sclae'; choose from: scale, rows"),
        (["-p", "download", "false"], "parameter download wants bool, got 'false'"),
        (["-y", "settings: {epsilon_255: 1e-3}"], "settings: epsilon_255 wants float, got '1e-3'"),
        (["-y", "settings: {epsilon_255: -8.0}"], "epsilon_255 is in 1/255"),
        (["-y", "settings: {datasets: {CIFAR10: cifar10}}"], "CIFAR-10 is not (whole) in"),
        (["-y", "rows: [DGADD]"], "unknown row 'DGADD'; choose one of: PGD-AT"),
        (["-p", "scale", "huge"], "unknown scale 'huge'; choose one of: gpu, paper, quick"),
        (["-p", "device", "quantum"], "no device 'quantum' here; choose from: auto, cpu"),
        (["-p", "outputs", "Makefile"], "cannot write"),
    ],
)
def test_bad_input_ends_papermill_with_one_sentence_and_a_non_zero_exit(tmp_path, arguments, said):
    done, _ = execute(ROOT / "notebooks" / "table4_dgad.ipynb", tmp_path, *arguments, data_dir=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("UserError: ")
    assert said in last
    assert not list((tmp_path).glob("runs/*"))
