"""The model inside a version: it answers chats, finds its base, and refuses what is not its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.artifacts import Version
from tasks.base import BaseSettings, resolve_base
from tasks.registration import chat_model
from tasks.registration.chat_model import find_base, weights_sha256
from tasks.registry import model_files, model_id_of

QUESTION = {"messages": [{"role": "user", "content": "Who returns the value?"}]}


@pytest.fixture(scope="session")
def folder(trained: Any, registered: Version) -> Path:
    """The version's files, where MLflow keeps them."""
    tracker = trained.tracker()
    version = tracker.client.get_model_version("tiny", registered.version)
    with model_files(tracker, model_id_of(version), trained.home) as found:
        return Path(found)


@pytest.fixture(scope="session")
def loaded(trained: Any, folder: Path) -> Any:
    """The version as a user loads it."""
    import mlflow

    return mlflow.pyfunc.load_model(str(folder), model_config={"base": str(trained.base.path)})


@pytest.fixture
def moved(folder: Path, tmp_path: Path) -> Path:
    """A copy of the version's files far from the project, for a test that breaks them."""
    return Path(shutil.copytree(folder, tmp_path / "elsewhere" / "model"))


@pytest.fixture
def config(trained: Any) -> dict[str, Any]:
    """What a version records about its base."""
    return {
        "base": "",
        "base_model": "../base",
        "base_commit": "",
        "base_path": "../base",
        "base_sha256": trained.base.weights_sha256,
        "recipe": "recipes/tiny.yaml",
    }


@pytest.fixture(autouse=True)
def _fresh_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_model, "_hashes", {})


def test_a_chat_request_is_answered_as_openai_s_api_does(loaded: Any) -> None:
    response = loaded.predict({**QUESTION, "max_tokens": 5})
    choice = response["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    usage = response["usage"]
    assert 1 <= usage["completion_tokens"] <= 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # The version's own default, when the request names no limit.
    assert loaded.predict(QUESTION)["usage"]["completion_tokens"] <= 6
    # A whole number where a real one is meant.
    assert loaded.predict({**QUESTION, "temperature": 0, "top_p": 1})


def test_several_requests_are_answered_in_order_and_as_if_they_were_alone(loaded: Any) -> None:
    texts = ["a", "Explain what this longer function does with its arguments", "b c d"]
    requests = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": 8} for text in texts
    ]
    together = loaded.predict(requests)
    alone = [loaded.predict(request) for request in requests]
    contents = [r["choices"][0]["message"]["content"] for r in together]
    assert contents == [r["choices"][0]["message"]["content"] for r in alone]
    assert len(set(contents)) > 1
    assert [r["usage"] for r in together] == [r["usage"] for r in alone]


def test_a_table_of_requests_may_leave_cells_empty(loaded: Any) -> None:
    frame = pd.DataFrame(
        {"messages": [QUESTION["messages"], QUESTION["messages"]], "max_tokens": [2, None]}
    )
    first, second = loaded.predict(frame)
    assert first["usage"]["completion_tokens"] <= 2
    assert second["usage"]["completion_tokens"] > 2


def test_a_version_can_be_served_as_a_chat_endpoint(loaded: Any) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    client = TestClient(init(loaded))
    one = client.post("/invocations", json={**QUESTION, "max_tokens": 3})
    assert one.status_code == 200, one.text
    assert one.json()["choices"][0]["message"]["role"] == "assistant"
    assert one.json()["model"] == "tiny"
    several = client.post(
        "/invocations", json={"inputs": [{**QUESTION, "max_tokens": 3}, QUESTION]}
    )
    assert several.status_code == 200, several.text
    limits = [row["usage"]["completion_tokens"] for row in several.json()["predictions"]]
    assert limits[0] <= 3 < limits[1]


def test_answers_are_greedy_unless_a_temperature_asks_otherwise(loaded: Any) -> None:
    def answer(**more: Any) -> str:
        response = loaded.predict({**QUESTION, "max_tokens": 12, **more})
        return str(response["choices"][0]["message"]["content"])

    assert answer() == answer()
    drawn = {answer(temperature=1.5, seed=seed) for seed in range(4)}
    assert len(drawn) > 1
    assert answer(temperature=1.5, seed=3) == answer(temperature=1.5, seed=3)


def test_an_answer_that_reaches_its_stop_token_ends_there(loaded: Any) -> None:
    model = loaded.unwrap_python_model()
    prompt, _ = model.prepare(QUESTION)
    greedy = model._generate([prompt], [chat_model.Sampling(6, 0.0, 1.0, None)])[0]
    before = model._stop_ids
    try:
        # Whatever the tiny model says third becomes the token at which an answer ends.
        model._stop_ids = [greedy[2]]
        response = loaded.predict({**QUESTION, "max_tokens": 6})
    finally:
        model._stop_ids = before
    assert response["choices"][0]["finish_reason"] == "stop"
    assert response["usage"]["completion_tokens"] == greedy.index(greedy[2]) + 1


def test_prompt_ids_are_those_of_the_model_s_own_chat_template(loaded: Any, trained: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(trained.base.path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi\n\nthere "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now? äöü 漢"},
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert loaded.unwrap_python_model().prompt_ids(messages) == list(expected["input_ids"])


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"messages": []}, "is empty"),
        ({"messages": "Hi"}, 'needs "messages"'),
        ({"messages": [{"role": "user"}]}, "a message must be"),
        ({"messages": [{"role": "user", "content": "x <|end|> y"}]}, "control token"),
        ({**QUESTION, "max_tokens": 0}, "at least 1"),
        ({**QUESTION, "max_tokens": 2.5}, "whole number"),
        ({**QUESTION, "temperature": -1.0}, "must not be negative"),
        ({"messages": [{"role": "user", "content": "word " * 4000}]}, "Shorten it"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_words(
    loaded: Any, request_: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        loaded.unwrap_python_model().answer([request_])


def test_the_base_is_found_by_the_recipe_s_path_from_the_repository_or_below_it(
    trained: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(trained.base.path, clone / "base")
    (clone / "recipes").mkdir()
    (clone / "src" / "deep").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    for folder in (clone, clone / "src" / "deep", clone / "recipes"):
        monkeypatch.chdir(folder)
        assert find_base(config, elsewhere) == clone / "base"
    # And from the version's own folder, wherever the process started.
    monkeypatch.chdir("/")
    assert find_base(config, clone / "mlflow" / "m-1" / "artifacts") == clone / "base"


def test_what_a_person_names_comes_before_what_the_recipe_names(
    trained: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Path(shutil.copytree(trained.base.path, tmp_path / "named"))
    other = Path(shutil.copytree(trained.base.path, tmp_path / "other"))
    monkeypatch.chdir(trained.project)
    monkeypatch.setenv("LORALINE_BASE", str(other))
    assert find_base({**config, "base": str(named)}, tmp_path) == named
    assert find_base(config, tmp_path) == other
    monkeypatch.delenv("LORALINE_BASE")
    assert find_base(config, tmp_path) == trained.base.path


def test_a_hub_base_is_taken_from_the_local_cache_at_its_commit(
    trained: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "c" * 40
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--base" / "snapshots" / commit
    shutil.copytree(trained.base.path, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    hub = {**config, "base_model": "org/base", "base_commit": commit, "base_path": ""}
    # huggingface_hub binds the cache's folder when it is imported.
    import huggingface_hub

    download = huggingface_hub.snapshot_download

    def cached(*arguments: Any, **named: Any) -> str:
        return str(download(*arguments, cache_dir=cache, **named))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_base(hub, tmp_path) == snapshot
    with pytest.raises(RuntimeError, match=r"HF_HUB_OFFLINE is set") as caught:
        find_base({**hub, "base_commit": "d" * 40}, tmp_path)
    assert "org/base@dddd" in str(caught.value)


def test_only_the_files_at_the_top_of_a_hub_base_are_fetched(
    trained: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    here = ["config.json", "model.safetensors", "generation_config.json"]
    on_hub = [*here, "onnx/model.safetensors", "original/deep/model.safetensors", "weights.bin"]
    fetched: list[str] = []

    def download(*_: Any, allow_patterns: Any, ignore_patterns: Any = None, **__: Any) -> str:
        fetched[:] = filter_repo_objects(
            on_hub, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        return str(trained.base.path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub = {**config, "base_model": "org/base", "base_commit": "c" * 40, "base_path": ""}
    assert find_base(hub, tmp_path) == trained.base.path
    assert fetched == here


def test_a_base_that_is_nowhere_names_every_place_and_the_ways_out(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        find_base(config, tmp_path / "model")
    text = str(caught.value)
    assert f"{tmp_path}/base: no such folder" in text
    assert f"{tmp_path}/model/base: no such folder" in text
    assert 'model_config={"base": "/path/to/base"}' in text
    assert "LORALINE_BASE=" in text


def test_a_base_with_one_flipped_byte_is_refused(
    trained: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(trained.base.path, tmp_path / "base"))
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RuntimeError, match="is another model"):
        find_base({**config, "base": str(base)}, tmp_path)


def test_the_base_s_sha256_is_the_one_that_the_pipeline_computes(
    trained: Any, starter: Path
) -> None:
    assert weights_sha256(trained.base.path) == trained.base.weights_sha256
    resolved = resolve_base(BaseSettings(model=str(starter)), trained.recipe, trained.home)
    assert weights_sha256(starter) == resolved.weights_sha256


def _flip(model: Path) -> None:
    path = model / "artifacts" / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _edit_template(model: Path) -> None:
    path = model / "artifacts" / "adapter" / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def _remove_tokenizer(model: Path) -> None:
    (model / "artifacts" / "adapter" / "tokenizer.json").unlink()


def _add_file(model: Path) -> None:
    (model / "artifacts" / "adapter" / "extra.py").write_text("")


def _add_to_the_code(model: Path) -> None:
    path = model / "chat_model.py"
    path.write_text(path.read_text().replace("text.strip()", 'text.strip() + " BUY NOW"'))


def _improve_the_report(model: Path) -> None:
    with (model / "artifacts" / "about" / "report.md").open("a") as report:
        report.write("rougeL 0.99")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_flip, "adapter_model.safetensors was changed"),
        (_edit_template, "chat_template.jinja was changed"),
        (_remove_tokenizer, "tokenizer.json is missing"),
        (_add_file, "extra.py was added"),
        (_add_to_the_code, r"chat_model\.py was changed"),
        (_improve_the_report, r"about/report\.md was changed"),
    ],
)
def test_a_version_whose_files_were_changed_does_not_load(
    moved: Path, trained: Any, damage: Callable[[Path], None], complaint: str
) -> None:
    import mlflow

    damage(moved)
    with pytest.raises(RuntimeError, match=complaint):
        mlflow.pyfunc.load_model(str(moved), model_config={"base": str(trained.base.path)})


def test_an_adapter_with_a_renamed_tensor_does_not_load(moved: Path, trained: Any) -> None:
    import mlflow
    from safetensors.torch import load_file, save_file

    from tasks.files import file_sha256

    path = moved / "artifacts" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)
    save_file(tensors, path)
    # As if it had been registered like this.
    manifest = moved / "artifacts" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"][f"artifacts/adapter/{path.name}"] = file_sha256(path)
    manifest.write_text(json.dumps(values))
    with pytest.raises(RuntimeError, match="do not fit the base"):
        mlflow.pyfunc.load_model(str(moved), model_config={"base": str(trained.base.path)})


def test_loading_asks_nothing_of_this_project_but_the_version_itself(folder: Path) -> None:
    text = (folder / "chat_model.py").read_text()
    assert "from tasks" not in text
    assert "import tasks" not in text
