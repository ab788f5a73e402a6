import errno
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from lib.errors import UserError
from lib.experiment.spec import digest_of
from lib.experiment.store import Store
from lib.files import write_atomically


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def publish(store: Store, digest: str = "abc") -> None:
    with store.publishing(digest) as folder:
        (folder / "result.json").write_text("{}")


def test_a_run_is_there_only_once_it_is_published(tmp_path):
    store = Store(tmp_path).prepared()
    assert not store.has("abc")
    publish(store)
    assert store.has("abc")


def test_a_failure_inside_the_block_publishes_nothing_and_leaves_no_litter(tmp_path):
    store = Store(tmp_path).prepared()
    with pytest.raises(ZeroDivisionError), store.publishing("abc") as folder:
        (folder / "half").write_text("half")
        _ = 1 / 0
    assert not store.has("abc")
    assert list(store.runs.iterdir()) == []


def test_a_full_disk_is_said_in_a_sentence_and_publishes_nothing(tmp_path):
    store = Store(tmp_path).prepared()
    with pytest.raises(UserError, match="the disk is full"), store.publishing("abc"):
        full_disk()
    assert not store.has("abc")
    assert list(store.runs.iterdir()) == []


def test_a_full_disk_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    store = Store(tmp_path).prepared()
    store.save_checkpoint("abc", {"step": 1})

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        store.save_checkpoint("abc", {"step": 2})
    assert store.load_checkpoint("abc") == {"step": 1}
    assert [path.name for path in store.partial.iterdir()] == ["abc.pt"]


@pytest.mark.parametrize("harm", ["changed", "truncated", "missing", "no manifest", "manifest is no JSON"])
def test_a_damaged_run_is_named_and_never_used(tmp_path, harm):
    store = Store(tmp_path).prepared()
    publish(store)
    folder = store.folder("abc")
    if harm == "missing":
        (folder / "result.json").unlink()
    elif harm == "no manifest":
        (folder / "manifest.json").unlink()
    elif harm == "manifest is no JSON":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "result.json").write_text("" if harm == "truncated" else "{ }")
    with pytest.raises(UserError, match="abc is damaged .*delete that folder"):
        store.has("abc")


def test_a_damaged_evaluation_is_named(tmp_path):
    store = Store(tmp_path).prepared()
    store.write_rows("abc", "key", [{"k": 1}])
    assert store.read_rows("abc", "key") == [{"k": 1, "of": {"run": "abc", "key": "key"}}]
    path = tmp_path / "evaluations" / "abc" / "key.json"
    path.write_text(path.read_text().replace("1", "2", 1).replace('"k": 1', '"k": 2'))
    with pytest.raises(UserError, match="key.json is damaged"):
        store.read_rows("abc", "key")


def test_a_damaged_checkpoint_is_named(tmp_path):
    store = Store(tmp_path).prepared()
    store.save_checkpoint("abc", {"step": torch.arange(1000)})
    path = tmp_path / "partial" / "abc.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="abc.pt is damaged"):
        store.load_checkpoint("abc")


def test_a_changed_bit_of_a_checkpoint_is_named_or_changes_no_value(tmp_path):
    store, draw, state = Store(tmp_path).prepared(), random.Random(0), {"step": torch.arange(300), "seconds": 2.5}
    store.save_checkpoint("abc", state)
    path, named = store.checkpoint("abc"), 0
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            found = store.load_checkpoint("abc")
        except UserError as error:
            named += "abc.pt is damaged" in str(error)
            continue
        assert found["step"].equal(state["step"])  # a date in the archive, or what fills it up
        assert found["seconds"] == 2.5
    assert named > 150


def test_an_evaluation_under_another_runs_or_columns_name_is_refused(tmp_path):
    store = Store(tmp_path).prepared()
    store.write_rows("abc", "key", [{"k": 1}])
    (store.evaluations / "def").mkdir()
    for place in (("abc", "other"), ("def", "key")):
        path = store.evaluations / place[0] / f"{place[1]}.json"
        path.write_text((store.evaluations / "abc" / "key.json").read_text())
        with pytest.raises(UserError, match="of another run or column"):
            store.read_rows(*place)


def test_a_run_whose_spec_is_another_runs_is_refused(tmp_path):
    store, digest = Store(tmp_path).prepared(), digest_of({"seed": 1})
    with store.publishing(digest) as folder:
        (folder / "spec.json").write_text('{"seed": 1}')
    assert store.has(digest)
    store.folder(digest).rename(store.folder("abc"))
    with pytest.raises(UserError, match=f"it is the run {digest}.*delete that folder"):
        store.has("abc")


def test_an_outputs_folder_that_is_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Store(tmp_path / "outputs").prepared()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_outputs_folder_without_write_permission_is_refused_in_a_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        Store(tmp_path / "outputs").prepared()


def hold(outputs: Path, held: Any) -> None:
    with Store(outputs).prepared().claim("abc"):
        held.set()
        time.sleep(60)


def test_a_claim_waits_for_its_holder_and_is_free_when_the_holder_is_killed(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(20)
    threading.Timer(0.5, holder.kill).start()
    with Store(tmp_path).prepared().claim("abc"):
        assert not holder.is_alive()
    assert "another process" in capsys.readouterr().out


def test_writing_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("held", ["abc", "abc-rows", "abc-0123"])
def test_nothing_is_tidied_beside_a_run_that_another_process_is_at(tmp_path, held):
    store = Store(tmp_path).prepared()
    publish(store)
    left = [store.partial / "abc-best-0-attack" / "about.json", store.evaluations / "abc" / ".x.json.1"]
    for file in left:
        file.parent.mkdir()
        file.write_text("{}")
    with FileLock(store.claims / f"{held}.lock"):
        store.tidy("abc")
        assert all(file.exists() for file in left)
    store.tidy("abc")
    assert not any(file.exists() for file in left)


def test_a_checkpoint_that_cannot_be_read_is_not_said_to_be_damaged(tmp_path):
    store = Store(tmp_path).prepared()
    store.checkpoint("abc").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        store.load_checkpoint("abc")
