"""A disk that is full, read-only, another user's, without locks, or changed while it is written to."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest
from faults import WORKS, attempt, fills_halfway, full, not_ours, read_only, state_of, tallied

pytestmark = pytest.mark.slow
FAULTS = {
    "no space and no inode": full,
    "a file takes 20 bytes": fills_halfway,
    "read-only": read_only,
    "another user's": not_ours,
}


@pytest.fixture(scope="module")
def states(works, tmp_path_factory):
    """What each work leaves where nothing happens, and the operations that it comes to."""
    found = {}
    for name, work in works.all.items():
        folder = tmp_path_factory.mktemp(name)
        outcome = attempt(work, folder)
        assert outcome.said == ""
        found[name] = outcome.places, state_of(folder), folder
    return found


def without_cache(state: dict) -> dict:
    """A cache of images is only a copy: a call may do without."""
    return {path: content for path, content in state.items() if "cache" not in path and path != "outputs"}


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_from_any_operation_on_is_said_in_a_sentence_and_the_next_call_is_right(
    works, states, tmp_path, name, fault
):
    places, state, _ = states[name]
    with tallied(f"{fault} ({name})") as tally:
        for number in range(1 + [*FAULTS].index(fault) % 4, len(places) + 1, 4):
            folder = tmp_path / str(number)
            folder.mkdir()
            outcome = attempt(works.all[name], folder, FAULTS[fault], number)
            tally.ended(outcome, places[number - 1])
            if not outcome.said:
                assert without_cache(state_of(folder)) == without_cache(state)
            assert attempt(works.all[name], folder).said == ""
            assert state_of(folder) == state


def turned(path: Path) -> None:
    """A folder becomes a file, a file a folder."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("x")
    else:
        path.unlink()
        (path / "x").mkdir(parents=True)


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("change", [turned, lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink()])
def test_a_folder_for_a_file_and_a_file_for_a_folder_and_anything_deleted_is_said_or_made_anew(
    works, states, tmp_path, name, change
):
    _, state, made = states[name]
    what = "a folder for a file, or a file for a folder" if change is turned else "a file or a folder deleted"
    with tallied(f"{what} ({name})") as tally:
        for number, path in enumerate(state):
            folder = tmp_path / str(number)
            shutil.copytree(made, folder)
            change(folder / path)
            outcome = attempt(works.all[name], folder)
            tally.ended(outcome, path)
            if not outcome.said:
                assert without_cache(state_of(folder)) == without_cache(state)


PARTS = ("", "runs", "partial", "claims", "evaluations")


@pytest.mark.parametrize("part", PARTS)
def test_outputs_or_a_part_of_it_deleted_while_it_runs_is_said_or_made_anew(works, states, tmp_path, part):
    places, state, _ = states["run"]
    with tallied(f"outputs/{part} deleted while it runs") as tally:
        for number in range(1 + PARTS.index(part), len(places) + 1, 5):
            folder, gone = tmp_path / str(number), []
            folder.mkdir()

            def delete(_: str, folder=folder, gone=gone) -> None:
                if not gone:
                    gone.append(shutil.rmtree(folder / "outputs" / part, ignore_errors=True))

            tally.ended(attempt(works.all["run"], folder, delete, number), places[number - 1])
            assert attempt(works.all["run"], folder).said == ""
            assert state_of(folder) == state


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_right_or_said_in_a_sentence(works, states, tmp_path, monkeypatch, number):
    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with tallied(f"no locks ({errno.errorcode[number]})") as tally:
        outcome = attempt(works.all["run"], tmp_path)
        tally.ended(outcome, "flock")
    if not outcome.said:
        runs = {path: content for path, content in states["run"][1].items() if not path.endswith(".lock")}
        found = {path: content for path, content in state_of(tmp_path).items() if not path.endswith(".lock")}
        assert found == runs
