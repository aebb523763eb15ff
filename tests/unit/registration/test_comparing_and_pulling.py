"""Two versions side by side, and a version's adapter as a plain folder."""

import importlib.util
import json
import py_compile
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.commands.versions import with_promotions
from tasks.errors import StageFailed, UserError
from tasks.files import hashes
from tasks.promotion.log import ENTRY_TAG, read_log
from tasks.promotion.notices import Notices
from tasks.promotion.promoting import promote
from tasks.registration.checking import check_version
from tasks.registration.comparing import compare_versions
from tasks.registration.prediction import Row, answer_rows
from tasks.registration.proving import prove_version
from tasks.registration.pulling import pull_adapter
from tasks.registry import current_champion, model_files, model_id_of
from tasks.version_manifest import write_manifest

pytestmark = pytest.mark.long


def weights_of(tracker: Any, home: Any, number: str) -> Path:
    version = tracker.client.get_model_version("tiny", number)
    with model_files(tracker, model_id_of(version), home) as folder:
        return Path(folder / "artifacts" / "adapter" / "adapter_model.safetensors")


@pytest.mark.usefixtures("unverified")
def test_two_versions_stand_side_by_side(
    own_trained: Any, another_adapter: Callable[[Any, int], Any]
) -> None:
    tracker = own_trained.tracker()
    card = {"rows": {"train": 10, "test": 2}, "digests": {"test": {"any_order": "t"}}}
    (own_trained.dataset.path / "card.json").write_text(json.dumps(card))
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "prompt": ["Who?", "What?", "Why?"],
            "reference": ["Ada", "this", "so"],
            "base_answer": ["?"] * 3,
            "challenger_answer": ["Ada", "that", "so"],
        }
    )
    first = own_trained.open_run(tracker)
    tracker.log_table(first, frame, "predictions")
    own_trained.register(tracker, run_id=first)
    other = another_adapter(own_trained, 2)
    report = other.report.model_copy(
        update={
            "metrics": {**other.report.metrics, "challenger": {"rougeL": 0.5, "loss": 1.0}},
            "gate": {"passed": False, "rules": [{"metric": "rougeL", "passed": False}]},
        }
    )
    other.recipe.write_text("name: tiny\nbase: ../base\nseed: 7\n")
    second = other.open_run(tracker)
    tracker.log_table(second, frame.assign(challenger_answer=["Ada", "this", "so"]), "predictions")
    replace(other, report=report).register(tracker, run_id=second)

    found = compare_versions(tracker, "models:/tiny/1", "models:/tiny/2", samples=2)
    assert found.versions == ("models:/tiny/1", "models:/tiny/2")
    assert found.facts["gate"] == ("passed", "refused")
    assert found.facts["dataset"] == ("a" * 16, "a" * 16)
    assert found.facts["adapter (sha256)"][0] != found.facts["adapter (sha256)"][1]
    assert found.metrics["rougeL"] == (0.4, 0.5)
    assert found.metrics["chrf"] == (0.4, None)
    assert found.rows == {"train": (10, 10), "test": (2, 2)}
    assert found.same_test_rows is True
    assert "+seed: 7" in found.recipe.splitlines()
    # Those answered differently come first.
    assert len(found.samples) == 2
    assert found.samples[0].prompt == "What?"
    assert found.samples[0].answers == ("that", "this")
    stored = tracker.client.get_model_version("tiny", "2").tags["loraline.gate_verdict"]
    assert json.loads(stored) == report.gate


@pytest.mark.usefixtures("unverified")
def test_a_version_without_answers_and_one_that_is_not_there_are_told(own_trained: Any) -> None:
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    found = compare_versions(tracker, "models:/tiny/1", "models:/tiny/1")
    assert found.samples == []
    assert "keeps no answers" in found.samples_note
    assert found.recipe == ""
    with pytest.raises(UserError, match="has no version 9"):
        compare_versions(tracker, "models:/tiny/1", "models:/tiny/9")


@pytest.mark.usefixtures("unverified")
def test_a_pulled_adapter_is_the_registered_one_and_peft_loads_it(
    own_trained: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tracker = own_trained.tracker()
    own_trained.register(tracker)
    folder = tmp_path / "new" / "adapter"
    pulled = pull_adapter(tracker, "models:/tiny/1", folder)
    assert pulled.folder == folder
    assert pulled.base_sha256 == own_trained.base.weights_sha256
    expected = hashes(own_trained.adapter.folder)
    assert {n: h for n, h in hashes(folder).items() if n != "adapter_config.json"} == {
        n: h for n, h in expected.items() if n not in ("adapter_config.json", "README.md")
    }
    model = AutoModelForCausalLM.from_pretrained(own_trained.base.path)
    PeftModel.from_pretrained(model, folder)
    with pytest.raises(UserError, match="is there already"):
        pull_adapter(tracker, "models:/tiny/1", folder)


@pytest.mark.usefixtures("unverified")
def test_a_flipped_byte_is_neither_pulled_nor_proven(own_trained: Any, tmp_path: Path) -> None:
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    weights = weights_of(tracker, own_trained.home, "1")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors was changed"):
        pull_adapter(tracker, "models:/tiny/1", tmp_path / "adapter")
    assert list(tmp_path.glob("*adapter*")) == []
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors was changed"):
        prove_version(tracker, "models:/tiny/1")


def test_a_whole_version_is_proven_in_a_fresh_process(
    own_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_trained.project)
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    assert "loaded in a fresh process" in prove_version(tracker, "models:/tiny/1")
    weights = own_trained.base.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    # Another base under the same name.
    with pytest.raises(StageFailed, match="does not load"):
        prove_version(tracker, "models:/tiny/1", base=own_trained.base.path)


@pytest.mark.usefixtures("unverified")
def test_altered_code_is_neither_executed_nor_pulled_nor_compared_with(
    own_trained: Any, tmp_path: Path
) -> None:
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    tracker.client.set_registered_model_alias("tiny", "champion", "1")
    model = weights_of(tracker, own_trained.home, "1").parents[2]
    code = model / "chat_model.py"
    proof = tmp_path / "executed"
    code.write_text(f"open({str(proof)!r}, 'w').close()\n{code.read_text()}")
    # Whoever may write there renews the manifest, too.
    write_manifest(model, own_trained.base.weights_sha256)
    told = r"tag loraline\.files_sha256 names"
    with pytest.raises(StageFailed, match=told):
        prove_version(tracker, "models:/tiny/1")
    with pytest.raises(StageFailed, match=told):
        pull_adapter(tracker, "models:/tiny/1", tmp_path / "adapter")
    with pytest.raises(StageFailed, match=told):
        answer_rows(
            [Row("--prompt", {"prompt": "Who?"})],
            tracker=tracker,
            uri="models:/tiny@champion",
            base=None,
            home=own_trained.home,
        )
    with pytest.raises(StageFailed, match=told):
        current_champion(tracker, "tiny", own_trained.home)
    checks = check_version(tracker, "models:/tiny/1", base=None, home=own_trained.home)
    assert {check.name: check.passed for check in checks} == {"files": False, "logits": False}
    assert not proof.exists()


@pytest.mark.usefixtures("unverified")
def test_bytecode_that_was_put_beside_the_code_is_not_executed(
    own_trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_trained.project)
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    code = weights_of(tracker, own_trained.home, "1").parents[2] / "chat_model.py"
    proof = tmp_path / "executed"
    planted = tmp_path / "planted.py"
    planted.write_text(f"open({str(proof)!r}, 'w').close()\n{code.read_text()}")
    cached = Path(importlib.util.cache_from_source(str(code)))
    cached.parent.mkdir(exist_ok=True)
    py_compile.compile(
        str(planted), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert "loaded in a fresh process" in prove_version(tracker, "models:/tiny/1")
    assert not proof.exists()


@pytest.mark.usefixtures("unverified")
def test_one_version_s_files_in_another_s_place_are_refused(
    own_trained: Any, another_adapter: Callable[[Any, int], Any], tmp_path: Path
) -> None:
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    another_adapter(own_trained, 2).register(tracker)
    first, second = (weights_of(tracker, own_trained.home, n).parents[1] for n in "12")
    shutil.rmtree(first)
    shutil.copytree(second, first)
    told = r"tag loraline\.adapter_sha256 names"
    with pytest.raises(StageFailed, match=told):
        prove_version(tracker, "models:/tiny/1")
    with pytest.raises(StageFailed, match=told):
        pull_adapter(tracker, "models:/tiny/1", tmp_path / "adapter")


@pytest.mark.usefixtures("unverified")
def test_the_list_says_who_promoted_a_version_as_the_log_has_it(own_trained: Any) -> None:
    tracker = own_trained.tracker()
    own_trained.register(tracker)
    ((_, promoted),) = with_promotions(tracker, "tiny")
    assert promoted == {"promoted_by": None, "promoted_at": None}
    moved = promote(
        tracker,
        "tiny",
        "1",
        reason="better",
        actor="ada",
        verify=lambda uri: f"{uri} loads",
        notices=Notices(own_trained.home.root / "outbox"),
    )
    tracker.client.set_model_version_tag("tiny", "1", "loraline.promoted_by", "mallory")
    tracker.client.set_model_version_tag("tiny", "1", "loraline.promoted_at", "1999-01-01T00:00:00")
    ((_, promoted),) = with_promotions(tracker, "tiny")
    assert moved.entry is not None
    assert promoted == {"promoted_by": "ada", "promoted_at": moved.entry.at}
    # A log that was altered vouches for nobody.
    (logged,) = read_log(tracker, "tiny")
    assert logged.entry is not None
    text = logged.entry.model_copy(update={"actor": "mallory"}).text
    tracker.client.set_tag(logged.run_id, ENTRY_TAG, text)
    ((_, promoted),) = with_promotions(tracker, "tiny")
    assert promoted["promoted_by"] == (
        "unknown (entry 1 of the log is damaged: loraline audit tiny)"
    )


@pytest.mark.usefixtures("unverified")
def test_transformers_loads_a_pulled_adapter_and_computes_what_was_trained(
    own_trained: Any, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    tracker = own_trained.tracker()
    own_trained.register(tracker)
    pulled = pull_adapter(tracker, "models:/tiny/1", tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(own_trained.base.path, dtype=torch.float32)
    model.load_adapter(str(pulled.folder))
    fixture = json.loads((own_trained.adapter.path / "fixture.json").read_text())
    wanted = load_file(own_trained.adapter.path / "fixture.safetensors")["logits"]
    with torch.inference_mode():
        for ids, logits in zip(fixture["input_ids"], wanted, strict=True):
            got = model(torch.tensor([ids])).logits[0, -len(logits) :]
            torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)
