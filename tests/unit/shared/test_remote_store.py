"""A store that several machines share: what one has built the others fetch, whole or not at all."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import remote_store
from tasks.errors import UserError
from tasks.home import Home
from tasks.remote_store import RemoteStore, Unavailable
from tasks.store import MANIFEST, Store

Build = Callable[[Path], None]
KEY = "ab" * 32


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "PAUSES", (0.0, 0.0))


@pytest.fixture
def here(tmp_path: Path, shared_bucket: Any) -> Store:
    return Store(tmp_path / "here", RemoteStore("s3://shared/loraline"))


@pytest.fixture
def there(tmp_path: Path, shared_bucket: Any) -> Store:
    return Store(tmp_path / "there", RemoteStore("s3://shared/loraline"))


def build(text: str = "rows") -> Build:
    def fill(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_bytes(b"\0" * 100_000)
        (folder / "rows.txt").write_text(text)

    return fill


def never(folder: Path) -> None:
    raise AssertionError("built again")


def test_what_one_machine_built_another_fetches(here: Store, there: Store) -> None:
    here.publish("training", KEY, build())
    found = there.publish("training", KEY, never)

    assert found.reused
    assert found.path.is_relative_to(there.root)
    assert (found.path / "adapter" / "weights").read_bytes() == b"\0" * 100_000
    assert there.find("training", "cd" * 32) is None


def test_a_folder_without_its_manifest_is_nobodys(
    here: Store, there: Store, shared_bucket: Any
) -> None:
    here.publish("training", KEY, build())
    shared_bucket.Object(f"loraline/training/{KEY}/{MANIFEST}").delete()

    assert there.find("training", KEY) is None
    assert not there.path("training", KEY).exists()


@pytest.mark.parametrize("files", [{"../escaped": "0" * 64}, {"/escaped": "0" * 64}, 7])
def test_a_manifest_that_nobody_here_wrote_fetches_nothing(
    there: Store, shared_bucket: Any, tmp_path: Path, files: Any
) -> None:
    manifest = json.dumps({"files": files}).encode()
    shared_bucket.put_object(Key=f"loraline/training/{KEY}/{MANIFEST}", Body=manifest)
    shared_bucket.put_object(Key="loraline/training/escaped", Body=b"x")

    assert there.find("training", KEY) is None
    assert [p for p in tmp_path.rglob("*") if "escaped" in p.name or "draft" in p.name] == []


def test_bytes_that_changed_on_the_way_are_built_again_and_replaced(
    here: Store, there: Store, shared_bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here.publish("training", KEY, build())
    shared_bucket.put_object(Key=f"loraline/training/{KEY}/rows.txt", Body=b"rowz")

    assert not there.publish("training", KEY, build()).reused
    assert "rows.txt is not what was written there" in caplog.text
    assert shared_bucket.Object(f"loraline/training/{KEY}/rows.txt").get()["Body"].read() == b"rows"


def test_what_a_rule_of_the_bucket_took_is_made_again_and_whole_for_the_next(
    here: Store, there: Store, shared_bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here.publish("training", KEY, build())
    # Rules know ages of files and no folders: the manifest, which is written last, goes last.
    shared_bucket.Object(f"loraline/training/{KEY}/rows.txt").delete()
    assert not there.publish("training", KEY, build()).reused
    assert "made again here" in caplog.text

    for file in shared_bucket.objects.all():
        file.delete()
    # Who has it on disk gives it back to the others.
    assert here.publish("training", KEY, never).reused
    third = Store(here.root.parent / "third", here.remote)
    assert third.publish("training", KEY, never).reused


def test_a_store_that_is_away_costs_a_warning_and_the_next_run_makes_up_for_it(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    assert here.remote is not None
    system = here.remote._system
    with monkeypatch.context() as network, caplog.at_level(logging.WARNING):
        for name in ("exists", "put_file"):
            network.setattr(system, name, away)
        assert not here.publish("training", KEY, build()).reused
    assert "Other workers do not see this output; the next run tries again" in caplog.text

    assert here.publish("training", KEY, never).reused
    assert there.publish("training", KEY, never).reused


def test_a_call_that_fails_once_is_made_again(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here.remote is not None
    put, failures = here.remote._system.put_file, [ConnectionError("slow down")]

    def once(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        put(*arguments)

    monkeypatch.setattr(here.remote._system, "put_file", once)
    here.publish("training", KEY, build())
    assert there.find("training", KEY) is not None


def test_what_is_built_by_force_replaces_the_older(here: Store, there: Store) -> None:
    here.publish("training", KEY, build("old"))
    here.publish("training", KEY, build("new"), force=True)

    assert (there.publish("training", KEY, never).path / "rows.txt").read_text() == "new"


def test_a_shared_disk_is_a_remote_store_too(tmp_path: Path) -> None:
    shared = RemoteStore((tmp_path / "mounted").as_uri())
    Store(tmp_path / "here", shared).publish("training", KEY, build())

    assert Store(tmp_path / "there", shared).publish("training", KEY, never).reused
    shared.remove(f"training/{KEY}", MANIFEST)
    assert shared.folders("training") == []
    assert shared.folders("checkpoints") == []


def test_the_variable_names_the_remote_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    assert Store.of(home).remote is None
    monkeypatch.setenv("LORALINE_STORE", "memory://team")
    found = Store.of(home).remote
    assert found is not None
    assert found.shown == "memory://team"
    monkeypatch.setenv("LORALINE_STORE", "ftpx://user:secret@host/x")
    with pytest.raises(UserError, match="LORALINE_STORE is ftpx://host/x") as refused:
        Store.of(home)
    assert "secret" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_told(shared_bucket: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"files": {}}')
    with pytest.raises(Unavailable, match="s3://nobodys did not let us write"):
        RemoteStore("s3://nobodys").push(tmp_path, "training/x", MANIFEST)
