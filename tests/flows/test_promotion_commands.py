"""What is running, why, and how to go back: each a command, on versions that a real run has made."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def two(small: Any, first_run: dict[str, Any]) -> str:
    """A model of its own with two versions: 1 is champion, 2 was registered by the policy `manual`."""
    name = ("--set", "name=two")
    manual = ("--set", "promotion.policy=manual")
    first = small.json("run", "recipes/small.yaml", *name)
    assert first["outcome"] == "registered", first["reason"]
    second = small.json("run", "recipes/small.yaml", *name, *manual, "--set", "seed=7")
    assert second["outcome"] == "registered", second["reason"]
    # The way on is one that can be pasted.
    assert "loraline promote two 2 --reason" in second["reason"]
    return "two"


def listed(small: Any, name: str) -> dict[str, dict[str, Any]]:
    return {entry["version"]: entry for entry in small.json("versions", name)["versions"]}


def test_a_person_promotes_goes_back_and_the_log_says_so(small: Any, two: str) -> None:
    automatic = small.json("audit", two)
    assert [(it["kind"], it["champion_to"]) for it in automatic["entries"]] == [("promotion", "1")]
    assert automatic["entries"][0]["flow_run"]
    assert automatic["entries"][0]["verified"] is True

    without = small("promote", two, "2")
    assert without.returncode == 2
    assert "--reason" in without.stderr
    done = small.json("promote", two, "2", "--reason", "it answers shorter")
    assert done["exit_code"] == 0, done["stderr"]
    assert done["promoted"] is True
    assert done["entry"]["verification"].startswith("files as recorded; loaded in a fresh process")
    versions = listed(small, two)
    assert versions["2"]["aliases"] == ["challenger", "champion"]
    assert versions["1"]["aliases"] == ["previous"]
    assert versions["2"]["promoted_by"]
    assert versions["2"]["promoted_at"].startswith("20")

    again = small("promote", two, "2", "--reason", "again")
    assert (again.returncode, again.stdout) == (0, "Version 2 of two is champion already.\n")

    back = small("rollback", two, "--reason", "it answers too short")
    assert back.returncode == 0, back.stderr
    assert "Version 1 of two is champion again (version 2 was)." in back.stdout
    assert listed(small, two)["1"]["aliases"] == ["champion"]
    further = small("rollback", two, "--reason", "more")
    assert further.returncode == 2
    assert "no version to go back to" in further.stderr

    audit = small("audit", two)
    assert audit.returncode == 0, audit.stderr
    assert "All 3 entries are as they were written, and none is missing." in audit.stdout
    assert "it answers too short" in audit.stdout


def test_two_versions_are_compared_with_their_answers(small: Any, two: str) -> None:
    told = small("diff", two, "1", "2", "--answers", "2")
    assert told.returncode == 0, told.stderr
    assert "models:/two/1" in told.stdout
    assert "+# --set seed=7" in told.stdout
    assert "rougeL" in told.stdout
    assert "reference: " in told.stdout
    found = small.json("diff", "models:/two/1", "models:/two/2")
    assert found["same_test_rows"] is True
    assert found["rows"]["train"][0] == found["rows"]["train"][1]
    assert 0 < len(found["samples"]) <= 5
    wrong = small("diff", two)
    assert wrong.returncode == 2
    assert "compares two versions" in wrong.stderr


def test_an_adapter_is_pulled_and_old_versions_are_only_listed(
    small: Any, two: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    pulled = small.json("pull", "models:/two/2", str(folder))
    assert pulled["exit_code"] == 0, pulled["stderr"]
    assert (folder / "adapter_model.safetensors").is_file()
    assert len(list(folder.iterdir())) == pulled["files"]
    plan = small.json("prune", two, "--keep", "1")
    assert (plan["deleted"], plan["versions"]) == (False, [])
    assert plan["kept"]["1"].startswith(("alias", "a rollback"))
    assert set(listed(small, two)) == {"1", "2"}
    misspelt = small("prune", "tow")
    assert misspelt.returncode == 2
    assert "No model named 'tow'" in misspelt.stderr


def test_a_tampered_log_is_named_with_its_first_altered_entry(
    small: Any, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.home import Home
    from tasks.promotion.log import ENTRY_TAG, read_log
    from tasks.tracking import Tracker

    tracker = Tracker(Home(small.folder / ".loraline"))
    run = read_log(tracker, two)[0]
    assert run.entry is not None
    text = run.entry.text
    try:
        tracker.client.set_tag(run.run_id, ENTRY_TAG, text.replace(run.entry.actor, "mallory"))
        audit = small.json("audit", two)
        assert (audit["exit_code"], audit["ok"]) == (1, False)
        assert audit["problems"][0]["number"] == 1
        told = small("audit", two)
        assert "The first that is not as it was written is entry 1" in told.stdout
    finally:
        tracker.client.set_tag(run.run_id, ENTRY_TAG, text)
    assert small.json("audit", two)["ok"] is True
    assert json.loads(text)["number"] == 1
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
