"""`loraline lock`: what it writes, what it says."""

import argparse

import pytest

from flows.commands import lock
from tasks.errors import BaseModelError, RecipeError

COMMIT_A = "a" * 40
COMMIT_B = "b" * 40
HEAD = "name: test\nbase: {model: team/base}\ndataset:\n  sources: [{type: jsonl, path: a.jsonl}]\n"


def run(*words):
    parser = argparse.ArgumentParser()
    lock.add_arguments(parser)
    return lock.run(parser.parse_args([str(word) for word in words]))


def test_the_first_lock_is_new_and_the_second_unchanged(hub, write_recipe, capsys):
    path = write_recipe(head=HEAD)
    assert run(path) == 0
    assert capsys.readouterr().out == (
        f"{path.with_suffix('.lock')}: team/base@main is commit {COMMIT_A} (new)\n"
    )
    hub.requests.clear()
    run(path)
    assert capsys.readouterr().out.endswith("(unchanged)\n")
    assert hub.requests == []


def test_only_update_moves_the_lock_and_says_from_where(hub, write_recipe, capsys):
    path = write_recipe(head=HEAD)
    run(path)
    hub.models["team/base"].branches["main"] = COMMIT_B
    run(path)
    assert f"{COMMIT_A} (unchanged)" in capsys.readouterr().out
    run(path, "--update")
    assert f"is commit {COMMIT_B} (was {COMMIT_A})" in capsys.readouterr().out


def test_a_corrupted_lock_is_replaced_by_update_alone(hub, write_recipe, capsys):
    path = write_recipe(head=HEAD)
    path.with_suffix(".lock").write_text("nothing")
    with pytest.raises(BaseModelError, match="is not a lock file"):
        run(path)
    run(path, "--update")
    assert f"is commit {COMMIT_A} (new)" in capsys.readouterr().out


def test_a_local_base_has_nothing_to_lock(write_recipe, capsys):
    path = write_recipe()
    assert run(path) == 0
    assert "is a local folder; there is no commit to lock" in capsys.readouterr().out
    assert not path.with_suffix(".lock").exists()


def test_an_override_decides_the_revision(hub, write_recipe, capsys):
    hub.models["team/base"].branches["v2"] = COMMIT_B
    run(write_recipe(head=HEAD), "--set", "base.revision=v2")
    assert f"team/base@v2 is commit {COMMIT_B}" in capsys.readouterr().out


def test_an_override_moves_an_existing_lock_by_update_alone(hub, write_recipe, capsys):
    path = write_recipe(head=HEAD)
    run(path)
    before = path.with_suffix(".lock").read_bytes()
    hub.models["team/base"].branches["v2"] = COMMIT_B
    with pytest.raises(BaseModelError, match=r"pins team/base@main.*--update"):
        run(path, "--set", "base.revision=v2")
    assert path.with_suffix(".lock").read_bytes() == before
    run(path, "--set", "base.revision=v2", "--update")
    assert f"is commit {COMMIT_B} (was {COMMIT_A})" in capsys.readouterr().out


def test_a_wrong_recipe_locks_nothing(hub, write_recipe):
    path = write_recipe("sede: 1\n", head=HEAD)
    with pytest.raises(RecipeError):
        run(path)
    assert hub.requests == []
