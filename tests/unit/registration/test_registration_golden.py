"""What a registration leaves is part of the fingerprint's promise: it changes only with OUTPUT_VERSION."""

import json
from pathlib import Path
from typing import Any

from tasks.artifacts import Version
from tasks.files import hashes
from tasks.registration import work
from tasks.registration.package import gather, model_config, write_model
from tasks.registration.settings import RegistrationSettings
from tasks.store import MANIFEST
from tasks.version_manifest import MANIFEST as MODEL_MANIFEST

EXPECTED_VERSION = 3
EXPECTED = {
    "contents": [
        "about/dataset.json",
        "about/environment.lock",
        "about/recipe.yaml",
        "about/report.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "adapter/generation_config.json",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "fixture/fixture.json",
        "fixture/fixture.safetensors",
    ],
    "manifest.json": ["base_sha256", "files", "root"],
    "manifest.json files": [
        "MLmodel",
        "artifacts/about/dataset.json",
        "artifacts/about/environment.lock",
        "artifacts/about/recipe.yaml",
        "artifacts/about/report.md",
        "artifacts/adapter/adapter_config.json",
        "artifacts/adapter/adapter_model.safetensors",
        "artifacts/adapter/chat_template.jinja",
        "artifacts/adapter/generation_config.json",
        "artifacts/adapter/tokenizer.json",
        "artifacts/adapter/tokenizer_config.json",
        "artifacts/fixture/fixture.json",
        "artifacts/fixture/fixture.safetensors",
        "chat_model.py",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ],
    "model_config": [
        "base",
        "base_commit",
        "base_model",
        "base_path",
        "base_sha256",
        "batch_size",
        "device",
        "dtype",
        "max_tokens",
        "name",
        "quantization",
        "recipe",
    ],
    "output": ["summary.md", "version.json"],
    "version.json": ["fingerprint", "mlflow_run_id", "name", "stages", "uri", "version"],
    "version.json stages": ["dataset", "evaluation", "registration", "tokenization", "training"],
}


def test_a_registration_leaves_the_expected_files_and_keys(
    trained: Any, registered: Version, tmp_path: Path
) -> None:
    contents = gather(
        tmp_path / "contents",
        adapter=trained.adapter.folder,
        fixture=trained.adapter.path,
        base=trained.base,
        about=work._about(trained.provenance(run_id="any")),
    )
    config = model_config(
        name="tiny",
        base=trained.base,
        recipe_path=trained.recipe,
        contents=contents,
        max_tokens=6,
        home=trained.home,
    )
    key = work.fingerprint_of(
        RegistrationSettings(),
        name=registered.name,
        adapter_fingerprint=trained.adapter.fingerprint,
        evaluation_fingerprint=trained.report.fingerprint,
        tracking_uri=trained.tracker().uri,
    )
    output = trained.store.find("registration", key)
    assert output is not None
    record = json.loads((output / "version.json").read_text(encoding="utf-8"))
    gathered = sorted(hashes(contents.folder))
    model = tmp_path / "model"
    write_model(model, contents, config, run_id="0" * 32, model_id="m-" + "0" * 32)
    manifest = json.loads((model / MODEL_MANIFEST).read_text(encoding="utf-8"))
    assert sorted(hashes(model)) == sorted([*manifest["files"], MODEL_MANIFEST])
    actual = {
        "contents": gathered,
        "manifest.json": sorted(manifest),
        "manifest.json files": sorted(manifest["files"]),
        "model_config": sorted(config),
        "output": sorted(set(hashes(output)) - {MANIFEST}),
        "version.json": sorted(record),
        "version.json stages": sorted(record["stages"]),
    }
    assert (work.OUTPUT_VERSION, actual) == (EXPECTED_VERSION, EXPECTED), (
        "A registration leaves other files or keys. If that is meant, raise OUTPUT_VERSION in "
        "tasks/registration/work.py, so that no stored registration of the old kind is reused, and "
        "copy the new values to this test."
    )
