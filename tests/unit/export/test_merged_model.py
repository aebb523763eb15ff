"""Merged weights: the same model as the adapter on its base, proven of the files, or nothing at all."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.errors import BaseModelError, StageFailed
from tasks.export import merging
from tasks.export.exporting import export_version
from tasks.export.job import Merged, MergeJob
from tasks.export.version import ExportedVersion, read_version
from tasks.files import hashes
from tasks.home import Home
from tasks.store import digest
from tasks.version_manifest import (
    BASE_TAG,
    FILES_TAG,
    FINGERPRINT_TAG,
    adapter_manifest,
    write_manifest,
)

pytestmark = pytest.mark.slow


def test_merged_fp32_weights_answer_as_the_adapter_on_its_base(
    project: Any, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = tmp_path / "merged"
    done = export_version(
        project.tracker, "models:/tiny/1", to="merged", output=output, base=project.base
    )
    found = done.certificate
    assert found is not None
    assert (found.dtype, found.trained_on, found.rows) == ("fp32", "none", 2)
    assert found.largest_difference <= 1e-5 < 0.01 < found.adapter_effect
    assert found.difference_from_training is not None
    assert found.difference_from_training < 1e-4
    assert found.base_sha256 == project.trained.base.weights_sha256
    assert found.adapter_sha256 == project.trained.adapter.sha256
    written = json.loads((output / "certificate.json").read_text())
    assert written == found.model_dump()
    there = hashes(output)
    assert written["files"] == {n: h for n, h in there.items() if n != "certificate.json"}
    assert done.sha256s == there

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    base = AutoModelForCausalLM.from_pretrained(project.base)
    adapted: Any = PeftModel.from_pretrained(base, project.model / "artifacts" / "adapter").eval()
    with torch.inference_mode():
        expected = adapted(ids).logits
        got = AutoModelForCausalLM.from_pretrained(output).eval()(ids).logits
    assert torch.allclose(got, expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(output).chat_template
    for path in output.glob("*.json"):
        assert str(tmp_path.parent) not in path.read_text()
        assert str(project.base.parent) not in path.read_text()
    assert {oct(path.stat().st_mode & 0o777) for path in output.iterdir()} == {"0o644"}


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precision_is_written_and_its_rounding_certified(
    project: Any, tmp_path: Path, dtype: Any, name: str
) -> None:
    from safetensors.torch import load_file

    output = tmp_path / "merged"
    done = export_version(
        project.tracker,
        "models:/tiny/1",
        to="merged",
        output=output,
        dtype=dtype,
        base=project.base,
    )
    assert done.certificate is not None
    assert 0 < done.certificate.largest_difference <= done.certificate.tolerance
    assert json.loads((output / "config.json").read_text())["dtype"] == name
    tensors = load_file(output / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{name}"}


def test_a_training_on_a_quantized_base_is_merged_into_the_unquantized_one_and_says_so(
    quantized_project: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "merged"
    done = export_version(
        quantized_project.tracker,
        "models:/tiny/1",
        to="merged",
        output=output,
        base=quantized_project.base,
    )
    assert done.certificate is not None
    assert done.certificate.trained_on == "nf4"
    assert "quantized to nf4 and is merged into the unquantized base" in caplog.text
    assert "quantized to nf4 and is merged" in (output / "README.md").read_text()


def test_a_merge_beyond_the_tolerance_leaves_nothing_behind(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(merging.ROUNDING, "bf16", 1e-9)
    with pytest.raises(StageFailed, match="is another model than the adapter on its base") as told:
        export_version(
            project.tracker,
            "models:/tiny/1",
            to="merged",
            output=tmp_path / "out" / "merged",
            dtype="bf16",
            base=project.base,
        )
    assert "--dtype fp32" in str(told.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert list(project.home.work.glob("export-*")) == []


def test_an_adapter_on_a_tied_output_head_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    """Merging changes the embedding too, which nothing but a comparison of what was saved shows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.registration.chat_model import weights_sha256

    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny_base)
    config.tie_word_embeddings = True
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, lora)
    torch.nn.init.normal_(adapted.base_model.model.lm_head.lora_B["default"].weight, std=0.5)
    adapted.eval()
    version = tmp_path / "version"
    adapted.save_pretrained(version / "adapter")
    for path in tiny_base.glob("*"):
        if path.name.startswith(("tokenizer", "chat_template", "generation")):
            (version / "adapter" / path.name).write_bytes(path.read_bytes())
    (version / "manifest.json").write_text(
        json.dumps({"files": hashes(version / "adapter"), "base_sha256": weights_sha256(base)})
    )
    (version / "fixture").mkdir()
    rows = [[5, 6, 7, 8]]
    (version / "fixture" / "fixture.json").write_text(json.dumps({"input_ids": rows}))
    with torch.inference_mode():
        logits = adapted(torch.tensor(rows)).logits
    save_file({"logits": logits.contiguous()}, version / "fixture" / "fixture.safetensors")
    tied = ExportedVersion(
        name="tied",
        number="1",
        description="",
        metrics={},
        gate="none",
        verdict={},
        recipe={},
        dataset={},
        loading={"name": "tied", "base_model": "base", "base_sha256": weights_sha256(base)},
        adapter_sha256="",
        folder=version,
        base=base,
    )
    working = tmp_path / "working"
    working.mkdir()
    with pytest.raises(StageFailed, match="a logit differs") as told:
        merging.merge_version(
            tied, "fp32", tmp_path / "draft", working=working, home=Home(tmp_path / "home")
        )
    assert "tied output head" in str(told.value)


@pytest.mark.parametrize("mistake", ["a module is left out", "a weight changes on the disk"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merge_gone_wrong_is_seen_above_the_rounding(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, dtype: Any
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tasks.export import worker

    version = read_version(
        project.tracker, "models:/tiny/1", tmp_path / "v", base=project.base, find_base=True
    )
    load = worker.PeftModel.from_pretrained
    save = worker._save_merged

    def without_a_module(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        for name, parameter in model.named_parameters():
            if "layers.1.mlp.down_proj.lora_B" in name:
                torch.nn.init.zeros_(parameter)
        return model

    def and_change(job: MergeJob) -> str | None:
        problem = save(job)
        path = job.draft / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.0.self_attn.o_proj.weight"] *= -1
        save_file(tensors, path, metadata={"format": "pt"})
        return problem

    if mistake == "a module is left out":
        # Of the merging only: the reference is loaded by the version's own code.
        loader = SimpleNamespace(from_pretrained=without_a_module)
        monkeypatch.setattr(worker, "PeftModel", loader)
    else:
        monkeypatch.setattr(worker, "_save_merged", and_change)
    job = MergeJob(
        adapter=version.adapter,
        manifest=version.folder / "manifest.json",
        base=project.base,
        loading=dict(version.loading),
        fixture=version.folder / "fixture",
        dtype=dtype,
        draft=tmp_path / "draft",
        result=tmp_path / "result.json",
    )
    worker.merge(job)
    found = Merged.model_validate_json(job.result.read_text())
    assert found.largest_difference > merging.allowed(found, dtype)


def test_what_is_allowed_is_never_more_than_half_of_what_the_adapter_does() -> None:
    faint = Merged(largest_logit=20.0, adapter_effect=0.01)
    strong = Merged(largest_logit=20.0, adapter_effect=8.0)
    # A base into which nothing was merged differs by the adapter's whole effect.
    assert merging.allowed(faint, "bf16") == 0.005
    assert merging.allowed(strong, "bf16") == 20 * 2**-5
    assert merging.allowed(strong, "fp32") == pytest.approx(20e-4)


def belongs_on(project: Any, base_sha256: str) -> None:
    """Have the version be one that was registered on this base."""
    mlmodel = project.model / "MLmodel"
    before = project.trained.base.weights_sha256
    mlmodel.write_text(mlmodel.read_text().replace(before, base_sha256))
    adapter = adapter_manifest(project.model / "artifacts" / "adapter", base_sha256)
    tags = {
        FILES_TAG: write_manifest(project.model, base_sha256),
        FINGERPRINT_TAG: digest(adapter),
        BASE_TAG: base_sha256,
    }
    for tag, value in tags.items():
        project.tracker.client.set_model_version_tag("tiny", "1", tag, value)


def test_fp16_that_overflows_is_refused_by_the_weights_name(
    own_project: Any, tmp_path: Path
) -> None:
    """The base's own numbers may be beyond float16."""
    from safetensors.torch import load_file, save_file

    from tasks.registration.chat_model import weights_sha256

    base = own_project.base
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    belongs_on(own_project, weights_sha256(base))
    with pytest.raises(StageFailed, match=r"down_proj\.weight.*beyond its largest number"):
        export_version(
            own_project.tracker,
            "models:/tiny/1",
            to="merged",
            output=tmp_path / "merged",
            dtype="fp16",
            base=base,
        )
    assert not (tmp_path / "merged").exists()


def test_another_base_and_a_quantized_one_are_refused(own_project: Any, tmp_path: Path) -> None:
    from tasks.registration.chat_model import weights_sha256

    def export() -> None:
        export_version(
            own_project.tracker,
            "models:/tiny/1",
            to="merged",
            output=tmp_path / "merged",
            base=own_project.base,
        )

    config = own_project.base / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "quantization_config": {"bits": 4}})
    )
    with pytest.raises(BaseModelError, match="is another model"):
        export()
    belongs_on(own_project, weights_sha256(own_project.base))
    with pytest.raises(BaseModelError, match="holds quantized weights"):
        export()
    assert not (tmp_path / "merged").exists()


def test_too_little_memory_or_disk_is_said_before_the_merge(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export() -> None:
        export_version(
            project.tracker,
            "models:/tiny/1",
            to="merged",
            output=tmp_path / "merged",
            base=project.base,
        )

    with monkeypatch.context() as patch:
        patch.setattr(merging, "available_bytes", lambda: 1000)
        with pytest.raises(StageFailed, match="GB of memory"):
            export()
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StageFailed, match="on another disk"):
        export()
    assert not (tmp_path / "merged").exists()
