import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from lib.errors import UserError
from lib.experiment import store as stores
from lib.experiment.spec import digest_of
from lib.experiment.store import Store, main, take
from lib.files import file_digest

DIGESTS = [digest_of({"seed": seed}) for seed in (1, 2)]


def publish(store: Store, seed: int, weights: str = "", **more: str) -> str:
    """A run and an evaluation of its weights, as they are made."""
    digest = digest_of({"seed": seed})
    files = {f"{name}.safetensors": f"{name} {seed} {weights}" for name in ("best", "last")}
    files |= {"spec.json": json.dumps({"seed": seed}), "history.json": "[]", "provenance.json": "{}"} | more
    with store.prepared().publishing(digest) as folder:
        for name, content in files.items():
            (folder / name).write_text(content)
    of = {"checkpoint": "best", "weights": file_digest(store.folder(digest) / "best.safetensors")}
    store.write_rows(digest, "key", [{"flags": "1a", "provenance": {"date": "then"}}], **of)
    return digest


@pytest.fixture
def there(tmp_path) -> Store:
    """Another machine's outputs: two runs, an evaluation of each, and an evaluation of given weights."""
    store = Store(tmp_path / "there")
    assert [publish(store, seed) for seed in (1, 2)] == DIGESTS
    store.write_rows("0123456789ab", "key", [{"flags": "1f"}], checkpoint="best", weights="those given")
    return store


@pytest.fixture
def here(tmp_path) -> Store:
    return Store(tmp_path / "here")


def files(store: Store) -> dict[str, bytes]:
    """Every file that stands for a result; claims are locks."""
    every = [path for each in (store.runs, store.partial, store.evaluations) for path in each.rglob("*")]
    return {str(path.relative_to(store.outputs)): path.read_bytes() for path in every if path.is_file()}


def test_a_whole_store_is_taken_file_by_file_and_twice_takes_nothing(there, here, capsys):
    here.prepared().save_checkpoint(DIGESTS[0], {"step": 1})  # begun here, and finished there
    assert take(there.outputs, here.outputs)
    assert files(here) == files(there)
    assert all(here.has(digest) for digest in DIGESTS)
    names = ", ".join(sorted(["0123456789ab", *DIGESTS]))
    assert capsys.readouterr().out.splitlines()[0] == f"took 2 runs and 3 evaluations: {names}"
    before = {path: path.stat().st_mtime_ns for path in here.outputs.rglob("*")}
    assert take(there.outputs, here.outputs)
    said = f"took 0 runs and 0 evaluations\npassed over 2 runs and 3 evaluations: {names}\nrefused 0 runs"
    assert said in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()}.items() <= before.items()


def test_a_folder_of_runs_is_taken_without_evaluations(there, here):
    assert take(there.runs, here.outputs)
    assert files(here) == {name: content for name, content in files(there).items() if name.startswith("runs")}


HARMS = {
    "a file was changed": lambda run: (run / "last.safetensors").write_text("other"),
    "a file is not there": lambda run: (run / "best.safetensors").unlink(),
    "no manifest": lambda run: (run / "manifest.json").unlink(),
    "a folder of another name": lambda run: (shutil.rmtree(run), shutil.copytree(run.parent / DIGESTS[1], run)),
    "a file": lambda run: (shutil.rmtree(run), run.write_text("")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_run_is_refused_with_its_evaluations_and_the_rest_is_taken(there, here, harm, capsys):
    HARMS[harm](there.folder(DIGESTS[0]))
    assert not take(there.outputs, here.outputs)
    said = capsys.readouterr().out.splitlines()
    assert DIGESTS[0] in said[0]
    assert "is damaged" in said[0]
    assert said[-1] == f"refused 1 runs and 1 evaluations: {DIGESTS[0]}"
    assert here.has(DIGESTS[1])
    assert not here.folder(DIGESTS[0]).exists()
    assert not any(DIGESTS[0] in name for name in files(here))


def test_a_run_of_kept_evidence_is_not_whole_and_is_refused(there, here, capsys):
    run = there.folder(DIGESTS[0])
    (run / "last.safetensors").unlink()
    manifest = {name: sha for name, sha in there.published(DIGESTS[0]).items() if name != "last.safetensors"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert there.has(DIGESTS[0])
    assert not take(there.outputs, here.outputs)
    assert "has no last.safetensors, so it is not whole" in capsys.readouterr().out


def test_an_equal_run_of_another_time_is_passed_over_and_one_of_other_weights_refused(there, here, capsys):
    publish(here, 1, **{"provenance.json": '{"date": "later"}'})
    publish(here, 2, weights="other")
    before = files(here)
    assert not take(there.outputs, here.outputs)
    assert f"passed over 1 runs and 1 evaluations: {DIGESTS[0]}" in (said := capsys.readouterr().out)
    assert f"{DIGESTS[1]} has other weights than the one here, which stays" in said
    assert {name: files(here)[name] for name in before} == before


@pytest.mark.parametrize(
    ("row", "of", "sentence"),
    [
        ({"flags": "1a"}, {"checkpoint": "best", "weights": "others"}, "does not name the weights that its run has"),
        ({"flags": "1a"}, {"checkpoint": "guide", "weights": "no guide's"}, "does not name the weights"),
        ({"flags": "1a"}, {}, "does not name the weights"),
    ],
)
def test_an_evaluation_of_other_weights_or_of_none_is_refused_and_its_run_taken(there, here, row, of, sentence, capsys):
    there.write_rows(DIGESTS[0], "key", [row], **of)
    assert not take(there.outputs, here.outputs)
    assert sentence in (said := capsys.readouterr().out)
    assert f"refused 0 runs and 1 evaluations: {DIGESTS[0]}" in said
    assert here.has(DIGESTS[0])
    assert here.read_rows(DIGESTS[0], "key") is None


def test_an_evaluation_of_another_run_damaged_or_unlike_the_one_here_is_refused(there, here, capsys):
    (there.evaluations / DIGESTS[0] / "key.json").write_text((there.evaluations / DIGESTS[1] / "key.json").read_text())
    publish(here, 2)
    of = {"checkpoint": "best", "weights": file_digest(here.folder(DIGESTS[1]) / "best.safetensors")}
    here.write_rows(DIGESTS[1], "key", [{"flags": "1b"}], **of)
    path = there.evaluations / "0123456789ab" / "key.json"
    path.write_text(path.read_text().replace("1f", "1e"))
    assert not take(there.outputs, here.outputs)
    said = capsys.readouterr().out
    assert all(text in said for text in ("is of another run or column", "is damaged", "differs from the one here"))
    assert "refused 0 runs and 3 evaluations" in said


def test_a_folder_that_is_no_store_is_refused_in_a_sentence_and_nothing_made(tmp_path, here, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    for folder in ("photos", "nowhere"):
        with pytest.raises(UserError, match=f"there are no runs in .*{folder}"):
            take(tmp_path / folder, here.outputs)
    assert not here.outputs.exists()


@pytest.mark.parametrize(("harmed", "code"), [(False, 0), (True, 1)])
def test_the_command_ends_with_1_where_something_was_refused(there, here, harmed, code, monkeypatch):
    if harmed:
        (there.folder(DIGESTS[0]) / "best.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", ["store", "import", str(there.outputs), "--outputs", str(here.outputs)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code


def killed_at_the_third_file(there: Path, here: Path) -> None:
    copy, done = shutil.copyfile, []

    def dying(*names: object) -> None:
        done.append(copy(*names))
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    stores.shutil.copyfile = dying
    take(there, here)


def test_a_killed_import_leaves_nothing_half_and_the_next_one_takes_all(there, here):
    process = multiprocessing.get_context("fork").Process(
        target=killed_at_the_third_file, args=(there.outputs, here.outputs)
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not [path for path in here.runs.iterdir() if not path.name.startswith(".")]
    assert take(there.outputs, here.outputs)
    assert files(here) == files(there)
    assert {path.name for path in here.runs.iterdir()} == {*DIGESTS}
