"""What a version's files must be: all of them as registered, and the registry vouches for the list."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.files import file_sha256
from tasks.registration.chat_model import check_files as check_when_served
from tasks.store import digest
from tasks.version_manifest import (
    MANIFEST,
    adapter_manifest,
    check_files,
    drop_bytecode,
    write_manifest,
)

BASE = "b" * 64


def build(model: Path, weights: bytes = b"weights") -> tuple[Path, dict[str, str]]:
    """A model's folder in small, and the tags of its version."""
    adapter = model / "artifacts" / "adapter"
    (model / "artifacts" / "about").mkdir(parents=True)
    adapter.mkdir()
    (model / "MLmodel").write_text("flavors: {}")
    (model / "chat_model.py").write_text("answer = 1")
    (model / "artifacts" / "about" / "report.md").write_text("rougeL 0.4")
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    (adapter / "adapter_config.json").write_text("{}")
    tags = {
        "loraline.files_sha256": write_manifest(model, BASE),
        "loraline.fingerprint": digest(adapter_manifest(adapter, BASE)),
        "loraline.adapter_sha256": file_sha256(adapter / "adapter_model.safetensors"),
        "loraline.base_sha256": BASE,
        "loraline.gate": "passed",
    }
    return model, tags


@pytest.fixture
def version(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    return build(tmp_path / "model")


def served(model: Path) -> None:
    check_when_served(model / MANIFEST)


def test_a_version_as_it_was_registered_passes_with_what_mlflow_and_python_add(
    version: tuple[Path, dict[str, str]],
) -> None:
    model, tags = version
    (model / "registered_model_meta").write_text("model_name: tiny")
    found = check_files(model, tags)
    assert (found.wrong, found.files, found.whole, found.base_sha256) == ((), 5, True, BASE)
    assert found.told == "all 5 have their recorded sha256"
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "chat_model.cpython-311.pyc").write_bytes(b"made by loading it")
    served(model)
    drop_bytecode(model)
    assert check_files(model, tags).wrong == ()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chat_model.py", "changed"),
        ("MLmodel", "changed"),
        ("artifacts/about/report.md", "changed"),
        ("artifacts/adapter/adapter_model.safetensors", "changed"),
        ("artifacts/adapter/adapter_config.json", "missing"),
        ("artifacts/about/report.md", "missing"),
        ("artifacts/adapter/extra.py", "added"),
        ("torch.py", "added"),
    ],
)
def test_each_file_counts_before_it_is_executed_and_when_it_is_served(
    version: tuple[Path, dict[str, str]], name: str, change: str
) -> None:
    model, tags = version
    if change == "missing":
        (model / name).unlink()
    else:
        (model / name).write_text("another")
    told = f"{name} {'is missing' if change == 'missing' else f'was {change}'}"
    assert check_files(model, tags).wrong == (told,)
    with pytest.raises(RuntimeError, match=told.replace(".", r"\.")):
        served(model)


def test_bytecode_in_place_of_the_code_is_not_overlooked_where_nobody_loads(
    version: tuple[Path, dict[str, str]],
) -> None:
    model, tags = version
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "chat_model.cpython-311.pyc").write_bytes(b"planted")
    assert check_files(model, tags).wrong == ("__pycache__/chat_model.cpython-311.pyc was added",)


def test_a_manifest_that_was_rewritten_with_the_files_is_not_the_registry_s(
    version: tuple[Path, dict[str, str]],
) -> None:
    model, tags = version
    (model / "chat_model.py").write_text("answer = 2")
    write_manifest(model, BASE)
    served(model)
    (told,) = check_files(model, tags).wrong
    assert told.startswith(
        f"{MANIFEST} was changed: the registry's tag loraline.files_sha256 names"
    )


def test_another_version_s_artifacts_are_not_this_version_s(
    version: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    model, tags = version
    other, _ = build(tmp_path / "other", b"other weights")
    shutil.rmtree(model / "artifacts")
    shutil.copytree(other / "artifacts", model / "artifacts")
    wrong = check_files(model, tags).wrong
    for tag in ("files_sha256", "fingerprint", "adapter_sha256"):
        assert any(f"loraline.{tag} names" in told for told in wrong), wrong


def older(model: Path, tags: dict[str, str]) -> dict[str, str]:
    """As versions were registered while manifests covered the adapter alone."""
    manifest = adapter_manifest(model / "artifacts" / "adapter", BASE)
    (model / MANIFEST).write_text(json.dumps(manifest))
    return {name: value for name, value in tags.items() if name != "loraline.files_sha256"}


def test_an_older_version_is_checked_as_far_as_its_manifest_goes_and_says_so(
    version: tuple[Path, dict[str, str]],
) -> None:
    model, tags = version
    before = older(model, tags)
    found = check_files(model, before)
    assert (found.wrong, found.whole) == ((), False)
    assert "the adapter's 2 have their recorded sha256" in found.told
    assert "are not compared" in found.told
    served(model)
    # A new version's files cannot pass for an older version's.
    assert "files_sha256 names" in check_files(model, tags).told
    (model / "artifacts" / "adapter" / "adapter_model.safetensors").write_bytes(b"other")
    told = "artifacts/adapter/adapter_model.safetensors was changed"
    assert check_files(model, before).wrong == (told,)
    # With the manifest, too: the registry knows the fingerprint.
    older(model, tags)
    assert any("loraline.fingerprint names" in told for told in check_files(model, before).wrong)
    with_a_new_manifest = write_manifest(model, BASE)
    assert with_a_new_manifest
    assert any("is gone" in told for told in check_files(model, before).wrong)


def _remove(path: Path) -> None:
    path.unlink()


def _tear(path: Path) -> None:
    path.write_text('{"files": ')


def _empty(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("damage", [_remove, _tear, _empty])
def test_a_manifest_that_cannot_be_read_is_told(
    version: tuple[Path, dict[str, str]], damage: Callable[[Path], None]
) -> None:
    model, tags = version
    damage(model / MANIFEST)
    assert f"{MANIFEST} cannot be read" in check_files(model, tags).told
