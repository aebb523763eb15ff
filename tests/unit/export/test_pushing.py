"""To the Hub: a private repository, the token from the environment, and nothing made that cannot go there."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StageFailed, UserError
from tasks.export.exporting import export_version


def export(project: Any, output: Path, repository: str = "ada/tiny") -> Any:
    return export_version(
        project.tracker, "models:/tiny/1", to="peft", output=output, push=repository
    )


def test_the_folder_arrives_whole_in_a_private_repository(
    project: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    output = tmp_path / "adapter"
    done = export(project, output)
    assert hub.repositories == {"ada/tiny": True}
    assert hub.files == {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(hub.cards) == {(output / "README.md").read_text()}
    assert done.pushed.repository == "ada/tiny"
    assert done.pushed.url == f"{hub.url}/ada/tiny"
    assert done.pushed.commit == "c" * 40
    # Again, to the same repository.
    hub.files.clear()
    export(project, tmp_path / "again", "tiny")
    assert "adapter_model.safetensors" in hub.files


def test_without_a_token_in_the_environment_nothing_is_asked_or_written(
    project: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    saved = tmp_path / "token"
    saved.write_text(hub.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(saved))
    with pytest.raises(UserError, match="environment variable HF_TOKEN"):
        export(project, tmp_path / "adapter")
    assert hub.calls == []
    assert not (tmp_path / "adapter").exists()


def test_a_wrong_token_a_wrong_name_and_a_public_repository_are_refused_before_the_export(
    project: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "adapter"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="refuses the token") as told:
        export(project, output)
    assert "hf_wrong" not in str(told.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(UserError, match="is no repository of the Hub"):
        export(project, output, "a/b/c")
    hub.repositories["ada/tiny"] = False
    with pytest.raises(UserError, match="this repository is public"):
        export(project, output)
    assert not output.exists()
    assert hub.files == {}


def test_a_push_that_fails_keeps_the_export_and_says_how_to_go_on(
    project: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.full = True
    output = tmp_path / "adapter"
    with pytest.raises(StageFailed, match="was not pushed to ada/tiny") as told:
        export(project, output)
    assert f"hf upload ada/tiny {output}" in str(told.value)
    assert hub.token not in str(told.value)
    assert (output / "adapter_model.safetensors").is_file()


def test_a_hub_that_does_not_answer_is_no_mistake_of_the_users(
    project: Any, tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        export(project, tmp_path / "adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StageFailed, match="the Hub did not answer"):
        export(project, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
