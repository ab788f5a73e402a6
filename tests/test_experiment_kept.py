import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small import parameters

from lib.errors import UserError
from lib.evaluate import AttackSpec, accuracy
from lib.experiment import evidence as made
from lib.experiment import kept
from lib.experiment.networks import network
from lib.experiment.parameters import PARAMS, Parameters, load_scale
from lib.experiment.planning import plan, run
from lib.experiment.reference import FORM, index, weights_of
from lib.experiment.table import open_table
from lib.experiment.table_file import read_table
from lib.experiment.your_model import Classifier, load, load_data
from lib.files import file_digest
from lib.models import build
from lib.models.checkpoints import load_weights

ENTRIES = yaml.safe_load((PARAMS / "evidence.yaml").read_text())["runs"]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """A table that was run, and the folder in which what it made is kept."""
    table = open_table("table4_dgad", parameters(tmp_path_factory.mktemp("outputs"), seeds=[0, 1]))
    planned = plan(table)
    results, folder = run(planned), tmp_path_factory.mktemp("reference")
    for job in planned.jobs:
        kept.keep(job, table, folder)
    return table, results, folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(kept, "SCALES", ("small", "quick"))
    monkeypatch.setattr("lib.experiment.reference.SCALES", ("small", "quick"))
    index.cache_clear()


def test_kept_accuracies_are_those_that_were_measured_with_every_flag_and_all_seeds(evidence):
    table, results, folder = evidence
    told = {(r.row, r.seed): r.accuracies for r in results if r.role == "cell"}
    found = {(r.row, r.seed): r.accuracies for r in kept.results(table, folder)}
    assert found == told
    assert len(found) == 4


def test_kept_accuracies_are_read_where_the_data_is_not(evidence, monkeypatch):
    table, results, folder = evidence
    monkeypatch.setattr("lib.data.load", lambda *_, **__: pytest.fail("the data was read"))
    elsewhere = replace(table, workspace=replace(table.workspace, outputs=folder / "nowhere"))
    assert len(kept.results(elsewhere, folder)) == sum(r.role == "cell" for r in results)


def test_a_kept_network_classifies_as_the_one_that_was_trained(evidence):
    table, _, folder = evidence
    path, facts = weights_of("DGAD", folder)
    cell = next(cell for cell in table.cells if cell.row.row == "DGAD" and cell.seed == 0)
    test, net = table.workspace.dataset(table.data).test, build(facts["model"], classes=10, channels=1)
    load_weights(net, path)
    clean = AttackSpec("Clean", "clean")
    own = accuracy(network(cell.network, cell.data, table.workspace), test, clean)
    assert abs(accuracy(net, test, clean).k - own.k) <= 1
    assert {w.dtype for w in load_file(path).values()} == {torch.float16, torch.int64}


def test_keeping_again_changes_no_byte(evidence):
    table, _, folder = evidence
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for job in plan(table).jobs:
        kept.keep(job, table, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_beyond_the_room_for_weights_is_kept_with_its_accuracies_and_not_called_by_its_name(
    evidence, tmp_path, monkeypatch
):
    table, _, folder = evidence
    sizes = [path.stat().st_size for path in folder.rglob("best.safetensors")]
    monkeypatch.setattr(kept, "MOST", sum(sizes) - 1)
    for job in plan(table).jobs:
        kept.keep(job, table, tmp_path)
    named, before = (index(where / "quick")["weights"] for where in (tmp_path, folder))
    assert len(named) == len(before) - 1
    assert kept.results(table, tmp_path) == kept.results(table, folder)
    assert len([*tmp_path.rglob("best.safetensors")]) == len(sizes) - 1


def test_a_run_that_was_trained_again_is_not_kept_beside_the_weights_of_the_first(evidence, tmp_path):
    table, _, folder = evidence
    job = plan(table).jobs[0]
    own = table.workspace.store.folder(job.run) / "provenance.json"
    before = own.read_text()
    own.write_text(json.dumps(json.loads(before) | {"seconds": 1e6}))
    try:
        with pytest.raises(UserError, match="is another training's: delete that folder"):
            kept.keep(job, table, folder)
    finally:
        own.write_text(before)


def test_a_kept_file_that_was_changed_is_named(evidence, tmp_path):
    _, _, folder = evidence
    path, facts = weights_of("PGD-AT", folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=rf"{facts['run']} is damaged \(best.safetensors\)"):
            weights_of("PGD-AT", folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "no readable index"),
        ("[]", "no readable index"),
        (json.dumps({"form": [0, 0]}), r"made by other code \(form \[0, 0\]"),
    ],
)
def test_evidence_of_other_code_or_without_an_index_is_not_shown(evidence, tmp_path, content, sentence):
    table, _, _ = evidence
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "index.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        kept.results(table, tmp_path)


def test_an_unknown_kept_network_is_refused_with_those_that_there_are(evidence, tmp_path):
    _, _, folder = evidence
    with pytest.raises(UserError, match="unknown kept network 'DGUD'; choose one of: .*DGAD"):
        weights_of("DGUD", folder)
    with pytest.raises(UserError, match="no evidence is kept"):
        weights_of("DGAD", tmp_path)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['table']}: {', '.join(entry['rows'])}")
def test_what_evidence_lists_are_rows_of_tables(entry):
    file = read_table(entry["table"])
    assert {*entry["rows"]} <= {row["row"] for row in file.rows}
    assert {*entry.get("students", [])} <= {*file.students}
    load_scale(Parameters(scale="small", seeds=entry.get("seeds", [0])))


def test_a_kept_network_is_loaded_by_its_name_as_a_teacher_and_for_an_evaluation(evidence, tmp_path, monkeypatch):
    _, _, folder = evidence
    monkeypatch.setattr(weights_of, "__defaults__", (folder,))
    names = {"WideResNet-34-10": "kept/teacher WideResNet-34-10"}
    table = open_table("table4_dgad", parameters(tmp_path, teacher_files=names))
    path, facts = weights_of("teacher WideResNet-34-10")
    assert table.teachers["WideResNet-34-10"].sha256 == file_digest(path)
    given = Classifier(weights="kept/DGAD")
    net = load(given, load_data(given), given.weights)
    assert net.training is False
    assert facts["data"] == "digits"


def test_a_kept_network_is_called_by_its_whole_row_and_found_at_whichever_scale_has_it(evidence, tmp_path):
    table, _, _ = evidence
    table = open_table("table2_dgad", parameters(table.workspace.outputs, rows=["MAP, PCR"], students=[]))
    planned = plan(table)
    run(planned)
    for job in planned.jobs:
        kept.keep(job, table, tmp_path)
    assert "MAP, PCR" in index(tmp_path / "quick")["weights"]
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "index.json").write_text(json.dumps({"form": FORM, "data": {}, "weights": {}, "seeds": [0]}))
    path, _ = weights_of("MAP, PCR", tmp_path)
    assert path.is_file()


def test_nothing_is_put_among_evidence_of_other_code(evidence, tmp_path):
    table, _, _ = evidence
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "index.json").write_text(json.dumps({"form": [0, 0]}))
    with pytest.raises(UserError, match="other code"):
        kept.keep(plan(table).jobs[0], table, tmp_path)
    assert [path.name for path in (tmp_path / "quick").iterdir()] == ["index.json"]


def test_a_teacher_that_two_seeds_learn_from_is_listed_once_and_asking_leaves_the_priority(
    evidence, monkeypatch, capsys
):
    table, _, _ = evidence
    seeds = [replace(table, parameters=replace(table.parameters, seeds=[seed])) for seed in (0, 1)]
    monkeypatch.setattr(made, "plans", lambda given: map(plan, seeds))
    monkeypatch.setattr("sys.argv", ["evidence", "-n"])
    before = os.nice(0)
    made.main()
    assert os.nice(0) == before
    lines = capsys.readouterr().out.splitlines()
    assert sum("teacher" in line for line in lines) == 1
    assert sum("DGAD" in line for line in lines) == 2
    assert lines[-1] == "missing: 0.0 core-hours on this machine"
