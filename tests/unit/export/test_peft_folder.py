"""The PEFT folder: the registered bytes, a card, and nothing that vLLM stumbles over."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StageFailed, UserError
from tasks.export.exporting import export_version
from tasks.export.reach import vllm_problems, vllm_rank
from tasks.files import hashes


def test_the_folder_holds_the_registered_adapter_and_peft_loads_it(
    project: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = tmp_path / "new" / "adapter"
    done = export_version(project.tracker, "models:/tiny/1", to="peft", output=output)
    manifest = json.loads((project.model / "artifacts" / "manifest.json").read_text())
    mine = {f"artifacts/adapter/{n}": h for n, h in done.sha256s.items() if n != "README.md"}
    recorded = manifest["files"].items()
    assert mine == {n: h for n, h in recorded if n.startswith("artifacts/adapter/")}
    assert done.sha256s == hashes(output)
    assert (done.certificate, done.pushed) == (None, None)
    assert [path.name for path in output.parent.iterdir()] == ["adapter"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(project.base), output)


def test_vllm_finds_what_it_reads_and_no_path_of_this_machine(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    export_version(project.tracker, "models:/tiny@challenger", to="peft", output=output)
    config = json.loads((output / "adapter_config.json").read_text())
    assert (output / "adapter_model.safetensors").is_file()
    assert config["peft_type"] == "LORA"
    assert config["r"] == 4
    assert config["lora_alpha"] == 8
    assert config["target_modules"]
    assert not config["base_model_name_or_path"].startswith("/")
    assert vllm_problems(config) == []
    assert "--max-lora-rank 8 --lora-modules tiny=" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"qkv_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"qkv_proj": 8}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
        ({"r": 1024}, "r is 1024"),
    ],
)
def test_what_vllm_would_refuse_or_scale_wrongly_is_named(
    change: dict[str, Any], told: str
) -> None:
    (problem,) = vllm_problems({"peft_type": "LORA", "r": 4, "bias": "none", **change})
    assert problem.startswith(told)


def test_the_rank_that_vllm_is_told_is_one_that_it_allows() -> None:
    assert [vllm_rank({"r": r}) for r in (1, 8, 9, 64, 65)] == [8, 8, 16, 64, 128]


def test_an_adapter_that_vllm_does_not_serve_is_exported_with_a_warning_and_a_note(
    own_project: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = own_project.model / "artifacts"
    path = artifacts / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {"qkv_proj": 2}}))
    own_project.seal()
    output = tmp_path / "adapter"
    with caplog.at_level(logging.WARNING):
        export_version(own_project.tracker, "models:/tiny/1", to="peft", output=output)
    assert "alpha_pattern is set" in caplog.text
    card = (output / "README.md").read_text()
    assert "vLLM does not serve this adapter as it is" in card
    assert "vllm serve" not in card


def test_a_flipped_byte_is_not_exported(own_project: Any, tmp_path: Path) -> None:
    weights = own_project.model / "artifacts" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors was changed"):
        export_version(
            own_project.tracker, "models:/tiny/1", to="peft", output=tmp_path / "out" / "adapter"
        )
    assert not any((tmp_path / "out").glob("*"))


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_filled(
    project: Any, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    output.mkdir()
    (output / "mine").write_text("precious")
    with pytest.raises(UserError, match="is there already, and not an empty folder"):
        export_version(project.tracker, "models:/tiny/1", to="peft", output=output)
    assert (output / "mine").read_text() == "precious"
    (output / "mine").unlink()
    export_version(project.tracker, "models:/tiny/1", to="peft", output=output)
    assert (output / "adapter_model.safetensors").is_file()


def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    project: Any, tmp_path: Path
) -> None:
    def export(uri: str = "models:/tiny/1", **asked: Any) -> None:
        export_version(project.tracker, uri, output=tmp_path / "x", **asked)

    with pytest.raises(UserError, match="copied as they were trained"):
        export(to="peft", dtype="bf16")
    with pytest.raises(UserError, match="--whole-model is for --format gguf"):
        export(to="merged", whole_model=True)
    with pytest.raises(UserError, match="has no version 9"):
        export("models:/tiny/9", to="peft")
    with pytest.raises(UserError, match="Name a registered version"):
        export("models:/m-123", to="peft")
    with pytest.raises(UserError, match="holds no config"):
        export(to="peft", base=tmp_path)
    assert not (tmp_path / "x").exists()
