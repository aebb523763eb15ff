"""The base model: folders, the Hub's branches and commits, the lock file, hashes."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.base import (
    BaseSettings,
    lock_path,
    locked_commit,
    read_lock,
    resolve_base,
)
from tasks.commit_memory import memory_path
from tasks.errors import BaseModelError
from tasks.home import Home

COMMIT_A = "a" * 40
COMMIT_B = "b" * 40
ON_HUB = BaseSettings(model="team/base")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "state")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: test\n")
    return path


@pytest.fixture
def folder(tmp_path):
    """A complete model folder, its files old enough for their hashes to be remembered."""
    path = tmp_path / "base"
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        write_old(path / name, name.encode())
    return path


def write_old(path, data):
    path.write_bytes(data)
    os.utime(path, (time.time() - 100, time.time() - 100))


def local(folder):
    return BaseSettings(model=str(folder))


def test_a_relative_folder_starts_at_the_recipe(folder, recipe, home):
    base = resolve_base(BaseSettings(model="./base"), recipe, home)
    assert (base.path, base.commit) == (folder, None)
    assert not lock_path(recipe).exists()


def test_each_file_is_counted_in_the_hash_it_belongs_to(folder, recipe, home):
    before = resolve_base(local(folder), recipe, home)
    write_old(folder / "model.safetensors", b"other weights")
    weights_changed = resolve_base(local(folder), recipe, home)
    assert weights_changed.weights_sha256 != before.weights_sha256
    assert weights_changed.tokenizer_sha256 == before.tokenizer_sha256
    write_old(folder / "chat_template.jinja", b"{{ messages }}")
    template_added = resolve_base(local(folder), recipe, home)
    assert template_added.weights_sha256 == weights_changed.weights_sha256
    assert template_added.tokenizer_sha256 != before.tokenizer_sha256


def test_hashes_are_remembered_while_files_are_unchanged(folder, recipe, home, monkeypatch):
    first = resolve_base(local(folder), recipe, home)
    hashed = []

    def count(path):
        hashed.append(path.name)
        return "0" * 64

    monkeypatch.setattr("tasks.hash_memory.file_sha256", count)
    assert resolve_base(local(folder), recipe, home) == first
    assert hashed == []
    # The same size and another mtime: what a fine-tuned copy of the weights looks like.
    (folder / "model.safetensors").write_bytes(b"MODEL.SAFETENSORS")
    assert resolve_base(local(folder), recipe, home) != first
    assert hashed == ["model.safetensors"]


def test_a_file_changed_just_now_is_hashed_anew_even_with_an_unchanged_mtime(folder, recipe, home):
    weights = folder / "model.safetensors"
    weights.write_bytes(b"first ")
    stamp = weights.stat().st_mtime_ns
    first = resolve_base(local(folder), recipe, home)
    weights.write_bytes(b"second")
    os.utime(weights, ns=(stamp, stamp))
    assert resolve_base(local(folder), recipe, home) != first


@pytest.mark.parametrize("damage", ["not json", "[]", '{"x": 3}'])
def test_a_damaged_memory_of_hashes_is_ignored(folder, recipe, home, damage):
    first = resolve_base(local(folder), recipe, home)
    (home.cache / "sha256.json").write_text(damage)
    assert resolve_base(local(folder), recipe, home) == first


def test_a_folder_that_is_not_there_is_named_with_its_absolute_path(recipe, home, tmp_path):
    with pytest.raises(BaseModelError) as error:
        resolve_base(BaseSettings(model="../nowhere"), recipe, home)
    assert f"{tmp_path.parent / 'nowhere'}, which does not exist" in str(error.value)


def test_an_adapter_is_not_a_base(folder, recipe, home):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(BaseModelError, match="holds a LoRA adapter and not a whole model"):
        resolve_base(local(folder), recipe, home)


def test_pickled_weights_are_refused_by_name(folder, recipe, home):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \.safetensors file.*pytorch_model\.bin"):
        resolve_base(local(folder), recipe, home)


def test_a_folder_without_tokenizer_json_is_refused(folder, recipe, home):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match=r"no tokenizer\.json"):
        resolve_base(local(folder), recipe, home)


def test_an_index_that_names_a_missing_shard_is_refused(folder, recipe, home):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"names model-00002-of-00002\.safetensors"):
        resolve_base(local(folder), recipe, home)


def test_an_index_that_is_no_index_is_refused(folder, recipe, home):
    (folder / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(BaseModelError, match="is not an index of weight files"):
        resolve_base(local(folder), recipe, home)


def test_a_branch_becomes_a_commit_at_first_use_and_is_downloaded(hub, recipe, home):
    base = resolve_base(ON_HUB, recipe, home)
    assert base.commit == COMMIT_A
    assert base.path.name == COMMIT_A
    assert (base.path / "model.safetensors").read_bytes() == b"weights of commit a"
    entry = read_lock(lock_path(recipe), recipe)
    assert entry == {"model": "team/base", "revision": "main", "commit": COMMIT_A}


def test_only_what_is_loaded_is_downloaded(hub, recipe, home):
    base = resolve_base(ON_HUB, recipe, home)
    files = {p.relative_to(base.path).as_posix() for p in base.path.rglob("*") if p.is_file()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_second_run_asks_the_hub_nothing(hub, recipe, home):
    first = resolve_base(ON_HUB, recipe, home)
    hub.requests.clear()
    assert resolve_base(ON_HUB, recipe, home) == first
    assert hub.requests == []


def test_the_lock_stays_when_the_branch_moves_and_update_moves_it(hub, recipe, home):
    resolve_base(ON_HUB, recipe, home)
    hub.models["team/base"].branches["main"] = COMMIT_B
    hub.models["team/base"].files[COMMIT_B]["model.safetensors"] = b"weights of commit b"
    assert resolve_base(ON_HUB, recipe, home).commit == COMMIT_A
    moved = resolve_base(ON_HUB, recipe, home, update=True)
    assert moved.commit == COMMIT_B
    assert (moved.path / "model.safetensors").read_bytes() == b"weights of commit b"
    assert resolve_base(ON_HUB, recipe, home).commit == COMMIT_B


def test_a_run_with_another_revision_leaves_the_lock_and_keeps_its_own_commit(
    hub, recipe, home, caplog
):
    resolve_base(ON_HUB, recipe, home)
    before = lock_path(recipe).read_bytes()
    hub.models["team/base"].branches["v2"] = COMMIT_B
    overridden = BaseSettings(model="team/base", revision="v2")
    with caplog.at_level(logging.WARNING):
        assert resolve_base(overridden, recipe, home).commit == COMMIT_B
    assert f"{lock_path(recipe)} pins team/base@main" in caplog.text
    assert f"uses team/base@v2 at commit {COMMIT_B}" in caplog.text
    assert f"`loraline lock {recipe} --update`" in caplog.text
    # The branch moves, and the Hub is not even asked.
    hub.models["team/base"].branches["v2"] = COMMIT_A
    hub.requests.clear()
    assert resolve_base(overridden, recipe, home).commit == COMMIT_B
    assert hub.requests == []
    assert lock_path(recipe).read_bytes() == before
    assert resolve_base(ON_HUB, recipe, home).commit == COMMIT_A


def test_the_lock_follows_another_revision_by_update_alone(hub, recipe, home):
    locked_commit(ON_HUB, recipe)
    hub.models["team/base"].branches["v2"] = COMMIT_B
    overridden = BaseSettings(model="team/base", revision="v2")
    with pytest.raises(BaseModelError, match=r"pins team/base@main.*is team/base@v2.*--update"):
        locked_commit(overridden, recipe)
    assert read_lock(lock_path(recipe), recipe)["revision"] == "main"
    assert resolve_base(overridden, recipe, home, update=True).commit == COMMIT_B
    assert read_lock(lock_path(recipe), recipe)["revision"] == "v2"


@pytest.mark.parametrize("damage", ["not json", "[]", '{"team/base@v2": 3}'])
def test_a_damaged_memory_of_commits_is_asked_anew(hub, recipe, home, damage):
    locked_commit(ON_HUB, recipe)
    hub.models["team/base"].branches["v2"] = COMMIT_B
    memory_path(home).parent.mkdir(parents=True)
    memory_path(home).write_text(damage)
    overridden = BaseSettings(model="team/base", revision="v2")
    assert locked_commit(overridden, recipe, home=home) == COMMIT_B
    assert json.loads(memory_path(home).read_text()) == {"team/base@v2": COMMIT_B}


def test_a_folder_written_like_a_hub_id_is_pointed_out_beside_a_lock_too(hub, folder, recipe, home):
    locked_commit(ON_HUB, recipe)
    nested = folder.parent / "models" / "phi"
    nested.parent.mkdir()
    folder.rename(nested)
    with pytest.raises(BaseModelError, match=r"For the folder write `base: \./models/phi`"):
        resolve_base(BaseSettings(model="models/phi"), recipe, home)


def test_a_commit_as_revision_needs_neither_hub_nor_lock(hub, recipe):
    assert locked_commit(BaseSettings(model="team/base", revision=COMMIT_B), recipe) == COMMIT_B
    assert hub.requests == []
    assert not lock_path(recipe).exists()


def test_offline_with_lock_and_cache_works(hub, recipe, home, monkeypatch):
    first = resolve_base(ON_HUB, recipe, home)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve_base(ON_HUB, recipe, home) == first
    assert hub.requests == []


def test_without_a_lock_a_silent_hub_is_answered_from_the_cache_with_a_warning(
    hub, recipe, home, caplog
):
    from huggingface_hub import snapshot_download

    # As another program would have downloaded it: the cache then knows what `main` pointed to.
    snapshot_download("team/base", endpoint=hub.url)
    hub.failure = (503, "")
    with caplog.at_level(logging.WARNING):
        base = resolve_base(ON_HUB, recipe, home)
    assert base.commit == COMMIT_A
    assert f"pinned to commit {COMMIT_A}" in caplog.text
    assert "status 503" in caplog.text


def test_a_hub_that_is_down_with_an_empty_cache_is_said_so(hub, recipe, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BaseModelError, match=r"the Hub did not answer.*local Hub cache"):
        resolve_base(ON_HUB, recipe, home)
    assert not lock_path(recipe).exists()


def test_offline_mode_with_an_empty_cache_is_named(hub, recipe, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE"):
        resolve_base(ON_HUB, recipe, home)


def test_an_unknown_model_is_not_looked_up_in_the_cache(hub, recipe, home):
    with pytest.raises(BaseModelError, match=r"no model 'team/bse' \(status 404\)"):
        resolve_base(BaseSettings(model="team/bse"), recipe, home)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((401, "RepoNotFound"), r"shows no model 'team/base' \(status 401\)"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((404, "RevisionNotFound"), "no branch, tag or commit 'main'"),
    ],
)
def test_each_refusal_of_the_hub_names_its_way_out(hub, recipe, home, failure, words):
    hub.failure = failure
    with pytest.raises(BaseModelError, match=words):
        resolve_base(ON_HUB, recipe, home)


@pytest.mark.parametrize("model", ["a/b/c", "team/base@main", "https://example.org/x"])
def test_what_is_neither_folder_nor_hub_id_is_refused(hub, recipe, model):
    with pytest.raises(BaseModelError, match="neither a folder nor a Hub id"):
        locked_commit(BaseSettings(model=model), recipe)
    assert hub.requests == []


def test_a_folder_written_like_a_hub_id_is_pointed_out(hub, folder, recipe):
    nested = folder.parent / "models" / "phi"
    nested.parent.mkdir()
    folder.rename(nested)
    with pytest.raises(BaseModelError, match=r"For the folder write `base: \./models/phi`"):
        locked_commit(BaseSettings(model="models/phi"), recipe)
    assert hub.requests == []


def test_a_download_that_was_cut_off_is_finished_by_the_next_run(hub, recipe, home):
    base = resolve_base(ON_HUB, recipe, home)
    (base.path / "model.safetensors").unlink()
    assert resolve_base(ON_HUB, recipe, home) == base


def test_an_incomplete_snapshot_without_a_network_is_refused(hub, recipe, home, monkeypatch):
    base = resolve_base(ON_HUB, recipe, home)
    (base.path / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"team/base@a+ is not \(or not completely\) in"):
        resolve_base(ON_HUB, recipe, home)


def test_a_snapshot_whose_index_names_a_shard_it_lacks_is_refused(
    hub, recipe, home, tmp_path, monkeypatch
):
    """A cache written by an older library keeps no list of files: only the index tells."""
    snapshot = tmp_path / "hub-cache" / "models--team--base" / "snapshots" / COMMIT_A
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (snapshot / name).write_bytes(b"{}")
    index = {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = BaseSettings(model="team/base", revision=COMMIT_A)
    with pytest.raises(BaseModelError, match=r"names model-00002-of-00002\.safetensors"):
        resolve_base(settings, recipe, home)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "base: {",
        "base: x\n",
        "base: {model: team/base, revision: main}\n",
        "base: {model: team/base, revision: main, commit: abc}\n",
        "<<<<<<< HEAD\nbase: {}\n",
    ],
)
def test_a_corrupted_lock_is_named_with_the_ways_out(hub, recipe, text):
    lock_path(recipe).write_text(text)
    with pytest.raises(BaseModelError, match=r"recipe\.lock: is not a lock file.*--update"):
        locked_commit(ON_HUB, recipe)
    assert locked_commit(ON_HUB, recipe, update=True) == COMMIT_A
    assert locked_commit(ON_HUB, recipe) == COMMIT_A


def test_a_lock_that_cannot_be_written_is_an_error(hub, tmp_path):
    recipe = tmp_path / "absent-folder" / "recipe.yaml"
    with pytest.raises(BaseModelError, match=f"cannot be written.*revision: {COMMIT_A}"):
        locked_commit(ON_HUB, recipe)


def test_the_endpoint_variable_is_honoured_in_a_fresh_process(hub, recipe, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tasks.base import *; from tasks.home import Home\n"
        "recipe, home = map(Path, sys.argv[1:])\n"
        "print(resolve_base(BaseSettings(model='team/base'), recipe, Home(home)).commit)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "other-cache"),
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe), str(tmp_path / "state")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout.strip()) == (0, COMMIT_A), done.stderr
