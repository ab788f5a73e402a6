"""Every notebook is thin, and runs from its first cell to its last with settings as small as they go."""

import ast
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from notebooks_in_process import code_cells, displayed, execute, refusal
from papermill.exceptions import PapermillExecutionError
from small import SETTINGS
from test_models_checkpoints import Hostile

from lib import ROOT, benchmark
from lib.experiment.parameters import PARAMS, Parameters
from lib.experiment.your_model import Classifier
from lib.methods import METHODS
from lib.models import build

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in (PARAMS / "tables").glob("*.yaml")}
OF_PAPERS = [path for path in NOTEBOOKS if TABLES.get(path.stem, {}).get("item")]
IMPORT = re.compile(r"(?:from|import) .*", re.MULTILINE)
DECLARED = {  # notebooks that are not about a table
    "benchmark_speed": benchmark.SpeedParameters,
    "benchmark_cluster": benchmark.ClusterParameters,
    "speedrun_robust": partial(Parameters, seeds=[0, 1, 2]),
    "evaluate_your_model": Classifier,
    "add_your_method": partial(SimpleNamespace, outputs="outputs"),
}
QUICKEST = {"max_steps": 1, "sanity_images": 0, "schedules": {"default": {"epochs": 1, "batch_size": 16}}}
DGAD = {"settings": SETTINGS, "students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
OF_MAKING_RUNS = ("workers", "executor", "address", "cpus_per_run", "gpus_per_run")
PAPERMILL = (sys.executable, "-m", "papermill", "--engine", "dynamic_at", "--no-progress-bar")  # as `make`


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One folder for all notebooks, as on a user's machine: a run that two tables need is trained once."""
    return tmp_path_factory.mktemp("outputs")


# --- as they stand ------------------------------------------------------------------------------------------------


def test_there_is_a_notebook_for_every_table_that_a_paper_has():
    assert {name for name, table in TABLES.items() if table["item"]} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_its_cells_are_short_plain_statements(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    for cell in code_cells(path):
        assert cell.execution_count is None
        assert not cell.outputs
        assert len(cell.source.splitlines()) <= 12 or "parameters" in cell.metadata.get("tags", []), cell.source
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While) for node in nodes), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_declares_the_parameters_that_it_uses_with_their_defaults_and_a_comment(path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    declared = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    defaults = vars(DECLARED.get(path.stem, Parameters)())
    own = {name for name in declared if name not in defaults}  # which only this notebook has
    assert declared.keys() - own == defaults.keys() - useless(path)
    assert all(declared[name] == defaults[name] for name in declared.keys() - own)
    assert all(any(name in names(other) for other in code_cells(path) if other is not cell) for name in own)
    known = papermill.inspect_notebook(str(path))
    assert known.keys() == declared.keys()
    assert all(parameter["help"] for parameter in known.values())


def names(cell):
    return {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}


def useless(path):
    """The parameters that a notebook would not heed: the table that it opens has one such thing, or none."""
    if path.stem in ("index", "errata"):  # they look at what is there, and run nothing
        return vars(Parameters()).keys() - {"scale", "data_dir", "outputs", "settings"}
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if not cell.metadata.get("tags"))
    opened = re.search(r'open_table\("(\w+)"', text)
    if not opened or path.stem in ("add_your_method", "evaluate_your_model"):  # whose parameters are their own
        return set()
    table, chosen = TABLES[opened[1]], re.search(r'"?rows(?:": |=)\["(.*?)"\]', text)
    rows = [row for row in table["rows"] if not chosen or row["row"] == chosen[1]]
    taught = any(METHODS[row["method"]].needs_teacher for row in rows)
    unheeded = {
        "rows": len(rows) < 2 or path.stem == "fig3_d2r",  # which sets its one row against its other
        "students": len(table["students"]) < 2 or "students=[" in text,
        "teachers": not taught or len(table["teachers"]) < 2,
        "teacher_files": not taught and "teacher_files" not in text,
        "protocol": "report.under_both" not in text,
        **dict.fromkeys(OF_MAKING_RUNS, "experiment.run(" not in text),
    }
    return {name for name, so in unheeded.items() if so}


@pytest.mark.parametrize("path", OF_PAPERS, ids=lambda path: path.stem)
def test_a_table_shows_its_methods_equations_and_below_them_the_code_of_every_loss(path):
    cells = nbformat.read(path, as_version=4).cells
    (where,) = [
        i for i, cell in enumerate(cells) if "| row | the attack maximises | training minimises |" in cell.source
    ]
    sources = [cell.source for cell in cells if cell.cell_type == "code" and "report.source(" in cell.source]
    assert any(cell.source in sources for cell in cells[where : where + 4])
    imports = [line for cell in code_cells(path) for line in cell.source.splitlines() if IMPORT.match(line)]
    shown, namespace = [], {}
    exec("\n".join(imports), namespace)
    namespace["report"] = SimpleNamespace(source=lambda *functions: shown.extend(functions), las_at_passes=len)
    for source in sources:
        exec(source, namespace)
    losses = {METHODS[row["method"]].loss for row in TABLES[path.stem]["rows"]}
    assert {made_by(loss) for loss in losses} <= {made_by(function) for function in shown}


def made_by(function):
    """The name of a loss, or of what it is a part or the work of."""
    return getattr(function, "func", function).__qualname__.partition(".")[0]


@pytest.mark.parametrize("path", OF_PAPERS, ids=lambda path: path.stem)
def test_a_table_begins_with_its_claim_and_the_first_thing_that_it_displays_is_its_plan(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.cell_type for cell in cells[:4]] == ["markdown", "code", "code", "markdown"]
    assert re.fullmatch(r"# [^\n]+\n\n\*\*The claim\.\*\* [^\n]+", cells[0].source)
    assert cells[2].source.endswith("\nplan = experiment.plan(table)\nplan")
    assert cells[-1].source.startswith("report.finish(")


# --- as they run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if path.stem not in DECLARED])
def test_every_notebook_runs_and_a_table_leaves_its_table_and_figures(name, outputs):
    table = TABLES.get(name, {})
    rows = [table["rows"][i]["row"] for i in (0, -1)] if table.get("rows") else []
    given = {"rows": rows, "students": table.get("students", [])[:1]}
    declared = papermill.inspect_notebook(ROOT / "notebooks" / f"{name}.ipynb")
    execute(name, outputs, settings=SETTINGS, **{key: given[key] for key in given if key in declared})
    if rows:
        check_saved(name, outputs, rows)


ROWS = [
    (name, row["row"])
    for name, table in TABLES.items()
    if (table["item"] or name == "compare_papers") and "rows" not in useless(ROOT / "notebooks" / f"{name}.ipynb")
    for row in (*table["rows"], *table.get("more_rows", []))
]


def test_a_second_call_of_a_notebook_trains_nothing_and_saves_the_same(tmp_path):
    execute("table8_dgad", tmp_path, rows=["DGAD (code)"], settings=SETTINGS | QUICKEST)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/best.safetensors")}
    saved = (tmp_path / "tables" / "table8_dgad.csv").read_text()
    execute("table8_dgad", tmp_path, rows=["DGAD (code)"], settings=SETTINGS | QUICKEST)
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert (tmp_path / "tables" / "table8_dgad.csv").read_text() == saved


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_notebook_runs_with_each_of_its_rows_alone(name, row, outputs):
    execute(name, outputs, rows=[row], settings=SETTINGS | QUICKEST)
    check_saved(name, outputs, [row])


def test_numbers_are_saved_before_a_figure_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.report.figures.robust_against_clean", lambda *_, **__: 1 / 0)
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute("table8_dgad", tmp_path, rows=["DGAD (code)"], settings=SETTINGS | QUICKEST)
    saved = json.loads((tmp_path / "tables" / "table8_dgad.json").read_text())
    assert {cell["row"] for cell in saved["cells"]} == {"DGAD (code)"}


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", PapermillExecutionError),
        ("import warnings; warnings.warn('beware')", AssertionError),
        ("import sys; print('beware', file=sys.stderr)", AssertionError),
        ("device == 'cpu' or 1 / 0; display('well')", None),
    ],
)
def test_an_error_a_warning_or_a_word_on_stderr_fails_a_notebook(tmp_path, source, error):
    cells = [new_code_cell("device = ''", metadata={"tags": ["parameters"]}), new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "own.ipynb")
    with pytest.raises(error) if error else nullcontext():
        assert "well" in displayed(execute(str(tmp_path / "own"), tmp_path))


def check_saved(name, outputs, rows):
    """The table in each format, with these rows only, and the figures where the notebook draws some."""
    saved = json.loads((outputs / "tables" / f"{name}.json").read_text())
    assert {cell["row"] for cell in saved["cells"]} <= {*rows}
    assert all(cell["n"] for cell in saved["cells"])
    for suffix in ("csv", "md", "tex", "html"):
        assert (outputs / "tables" / f"{name}.{suffix}").stat().st_size
    drawn = f"{name}=figure" in code_cells(ROOT / "notebooks" / f"{name}.ipynb")[-1].source
    assert (outputs / "figures" / f"{name}.pdf").exists() == drawn


def papermill_command(tmp_path, *arguments, environment=None, **given):
    """The command a user types, in a process of its own with a kernel of its own."""
    given = {"outputs": str(tmp_path), "device": "cpu", "workers": 1} | given
    notebook, copy = ROOT / "notebooks" / "table4_dgad.ipynb", tmp_path / "executed.ipynb"
    command = [*PAPERMILL, str(notebook), str(copy), "-y", yaml.safe_dump(given), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300), copy


def test_the_papermill_command_runs_a_notebook_in_a_kernel_of_its_own(tmp_path):
    rows = ["PGD-AT", "DGAD (code)"]
    done, copy = papermill_command(tmp_path, rows=rows, **DGAD)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Unable to parse" not in done.stderr  # papermill reads the comments of the parameters' cell
    assert "without encryption" not in done.stderr
    outs = [out for cell in code_cells(copy) for out in cell.outputs]
    assert not [out for out in outs if out.output_type == "error" or out.get("name") == "stderr"]
    check_saved("table4_dgad", tmp_path, rows)


@pytest.mark.slow
def test_a_notebook_runs_without_a_home_in_the_c_locale_and_into_a_folder_of_any_name(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"LC_ALL": "C"}
    (elsewhere := tmp_path / "größer 'als'").mkdir()
    done, _ = papermill_command(elsewhere, environment=environment, rows=["DGAD (code)"], **DGAD)
    assert done.returncode == 0, done.stderr[-3000:]
    check_saved("table4_dgad", elsewhere, ["DGAD (code)"])


def test_the_papermill_command_ends_with_one_sentence_and_a_non_zero_exit_on_a_misspelt_parameter(tmp_path):
    done, _ = papermill_command(tmp_path, "-p", "sclae", "gpu")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("UserError: unknown parameter 'sclae'; choose from: scale, rows")


def test_a_model_of_ones_own_is_evaluated(tmp_path):
    cheap = {"AA": {"images": 5, "stages": ["apgd-ce"]}, "PGD-50": {"steps": 3}, "PGD-20": {"steps": 2}}
    torch.save(build("ResNet10-w8", classes=10, channels=1).state_dict(), tmp_path / "mine.pt")
    given = {"weights": str(tmp_path / "mine.pt"), "model": "ResNet10-w8", "images": 20, "changes": cheap}
    copy = execute("evaluate_your_model", tmp_path, **given)
    (report,) = (tmp_path / "tables").glob("evaluate_your_model_mine_*.json")
    saved = json.loads(report.read_text())
    assert [len(a["flags"]) for a in saved["accuracies"]] == [20, 20, 20, 20, 20, 5]
    assert len(saved["findings"]) == 11
    assert "at chance" in {finding["check"] for finding in saved["findings"] if finding["fired"]}  # it was not trained
    assert "worst case over the attacks" in displayed(copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table4_dgad", ["DGAD", "DGAD (code)"]),
        ("table4_dgad", ["PGD-AT", "TRADES"]),
        ("table4_dgad", ["AdaAD (KL as printed)", "DGAD (KL as printed)"]),
        ("table1_las_at", ["PGD-AT", "k=1", "Frozen"]),
        ("table2_las_at", ["LBGAT", "LAS-TRADES", "LAS-AWP", *(f"LAS-{b} (code)" for b in ("AT", "TRADES", "AWP"))]),
        ("table7_las_at", ["DART", "DART (code)"]),
        ("table1_dynat", ["DYNAT", "DYNAT-Inner", "DYNAT-Inner-AWP (alpha=1)"]),
        ("table2_dynat", ["DYNAT-AWP (alpha=1)", "DYNAT-AWP (beta=1)"]),
        ("table3_dynat", ["GAIRAT (smoothed; WRN)", "DYNAT-Inner-GAIRAT (0.82; WRN)"]),
        ("table4_dynat", ["MAIL", "MAIL-TRADES", "LBGAT", "MAIL (MSE)"]),
        ("table1_d2r", ["D2R-CAG", "D2R-CAG (as printed)"]),
        (
            "table2_d2r",
            [
                "D2R (alpha=30, beta=20)",
                "D2R (alpha=30, beta=0)",
                *(f"D2R-CAG ({f})" for f in ("sums over classes", "one sign per batch")),
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_rows_that_notebooks_advertise_run_side_by_side(name, rows, outputs):
    given = DGAD if name == "table4_dgad" else {"settings": SETTINGS}
    execute(name, outputs, rows=rows, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [("fig4_las_at", ["LAS-AT (k=1)", "Random"]), ("fig2_d2r", ["LBGAT", "LBGAT (guide frozen)"]), ("fig3_dynat", [])],
)
def test_each_of_two_seeds_has_its_own_curve(name, rows, outputs):
    copy = execute(name, outputs, rows=rows, seeds=[0, 1], settings=SETTINGS)
    for row in rows or ["LBGAT"]:
        assert all(f"{row}, seed {seed}" in displayed(copy) for seed in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["las_at", "dynat", "d2r"])
def test_a_walkthrough_runs_in_bf16(paper, outputs):
    execute(f"walkthrough_{paper}", outputs, settings={**SETTINGS, "precision": "bf16"})


# --- what they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sclae": "gpu"}, "unknown parameter 'sclae'; choose from: scale, rows"),
        ({"download": "false"}, "parameter download wants bool, got 'false'"),
        ({"settings": {"epsilon_255": "1e-3"}}, "settings: epsilon_255 wants float, got '1e-3'"),
        ({"settings": {"epsilon_255": -8.0}}, "epsilon_255 is in 1/255 and must lie in (0, 255]"),
        ({"settings": {"datasets": {"CIFAR10": "cifar10"}}}, "CIFAR-10 is not (whole) in"),
        ({"rows": ["DGADD"]}, "unknown row 'DGADD'; choose one of: DGAD, PGD-AT"),
        ({"scale": "huge"}, "unknown scale 'huge'; choose one of: gpu, paper, quick"),
        ({"device": "quantum"}, "no device 'quantum' here; choose from: auto, cpu"),
        ({"outputs": "Makefile"}, "cannot write"),
    ],
)
def test_bad_input_ends_a_table_with_one_sentence(tmp_path, given, sentence):
    assert sentence in refusal("table4_dgad", tmp_path, **{"data_dir": str(tmp_path)} | given)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("harm", ["truncated", "hostile", "another network's"])
def test_a_bad_teacher_file_ends_a_table_with_one_sentence(tmp_path, harm):
    file = tmp_path / "teacher.pt"
    torch.save({"weight": Hostile(str(tmp_path / "victim"))} if harm == "hostile" else {"weight": torch.ones(3)}, file)
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    sentence = refusal("table4_dgad", tmp_path, rows=["DGAD"], teacher_files={"WideResNet-34-10": str(file)}, **DGAD)
    assert {"truncated": "damaged", "hostile": "refused", "another network's": "holds no state dict"}[harm] in sentence
    assert not (tmp_path / "victim").exists()
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weights": "nowhere.pt"}, "there is no weights file"),
        ({"model": "ResNet19"}, "unknown model 'ResNet19'"),
        ({"changes": {"AA": {"image": 3}}}, "AA has no 'image'"),
        ({"epsilon_255": 800.0}, "cannot be meant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_parameter_of_ones_own_model_ends_with_one_sentence(tmp_path, given, sentence):
    torch.save(build("ResNet8-w8", classes=10, channels=1).state_dict(), tmp_path / "mine.pt")
    given = {"weights": str(tmp_path / "mine.pt"), "model": "ResNet8-w8", "images": 8} | given
    assert sentence in refusal("evaluate_your_model", tmp_path, **given)
