"""One trained-looking adapter on the tiny base, with everything the earlier stages hand over."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Adapter, Dataset, Report, Tokens, Version
from tasks.base import Base, BaseSettings, resolve_base
from tasks.files import file_sha256
from tasks.home import Home
from tasks.registration.job import Verification
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.registration.work import register_adapter
from tasks.store import Store
from tasks.tracking import Tracker

PROMPT = "<|user|>\nWhat does it return?<|end|>\n<|assistant|>\n"


def build_adapter(base: Path, folder: Path, *, seed: int, scale: float = 0.2) -> None:
    """A random LoRA adapter with non-zero lora_B, as the training leaves it, with its fixture."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.eval()
    adapter = folder / "adapter"
    adapted.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, adapter / name)
    shutil.copy(base / "generation_config.json", adapter / "generation_config.json")

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    rows = [tokenizer.encode(PROMPT, add_special_tokens=False).ids, [5, 6, 7, 8, 9, 10]]
    with torch.inference_mode():
        logits = torch.stack([adapted(torch.tensor([ids])).logits[0, -4:] for ids in rows])
    (folder / "fixture.json").write_text(json.dumps({"input_ids": rows, "dtype": "float32"}))
    save_file({"logits": logits.float().contiguous()}, folder / "fixture.safetensors")


@dataclass(frozen=True)
class Trained:
    """What the stages before registration hand over."""

    project: Path
    recipe: Path
    home: Home
    base: Base
    dataset: Dataset
    tokens: Tokens
    adapter: Adapter
    report: Report
    store: Store

    def tracker(self) -> Tracker:
        return Tracker(self.home)

    def with_adapter(self, folder: Path) -> "Trained":
        sha = file_sha256(folder / "adapter" / "adapter_model.safetensors")
        adapter = self.adapter.model_copy(
            update={"path": folder, "fingerprint": sha[::-1], "sha256": sha}
        )
        return replace(self, adapter=adapter)

    def open_run(self, tracker: Tracker) -> str:
        return tracker.open_run("tiny", "a run", tags={"loraline.recipe": "tiny"}, params={})

    def provenance(self, run_id: str) -> Provenance:
        return Provenance(
            dataset=self.dataset,
            tokens=self.tokens,
            adapter=self.adapter,
            report=self.report,
            base=self.base,
            recipe_path=self.recipe,
            recipe_text=self.recipe.read_text(),
            recipe_digest="d" * 64,
            run_id=run_id,
            prefect_flow_run_id="flow-1",
        )

    def register(self, tracker: Tracker, **changes: Any) -> Version:
        settings = changes.pop("settings", RegistrationSettings())
        made = self.provenance(changes.pop("run_id", None) or self.open_run(tracker))
        return register_adapter(
            self.store,
            settings,
            tracker=tracker,
            name="tiny",
            made=replace(made, **changes),
            max_tokens=6,
        )


def metrics(rouge: float) -> dict[str, float]:
    return {"loss": 2.0 - rouge, "rougeL": rouge, "chrf": rouge, "stop_rate": 1.0}


def build_trained(project: Path, tiny_base: Path, database: Path) -> Trained:
    """A project folder with a recipe, a base beside it and a home, and the stages' outputs."""
    (project / "recipes").mkdir(parents=True)
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text("name: tiny\nbase: ../base\n")
    shutil.copytree(tiny_base, project / "base")
    home = Home(project / ".loraline")
    home.root.mkdir()
    home.mlflow.mkdir()
    shutil.copy(database, home.mlflow)
    base = resolve_base(BaseSettings(model="../base"), recipe, home)
    output = project / ".loraline" / "outputs"
    build_adapter(base.path, output / "training", seed=1)
    (output / "evaluation").mkdir()
    (output / "evaluation" / "report.md").write_text("# Report\n")
    (output / "dataset").mkdir()
    (output / "dataset" / "card.json").write_text("{}")
    return Trained(
        project=project,
        recipe=recipe,
        home=home,
        base=base,
        dataset=Dataset(
            path=output / "dataset",
            fingerprint="1" * 64,
            reused=False,
            seconds=0,
            digest="a" * 64,
            rows={"train": 10, "test": 2},
        ),
        tokens=Tokens(
            path=output,
            fingerprint="2" * 64,
            reused=False,
            seconds=0,
            rows={"train": 10, "test": 2},
            tokens={"train": 100, "test": 20},
            trained_tokens={"train": 50, "test": 10},
        ),
        adapter=Adapter(
            path=output / "training",
            fingerprint="3" * 64,
            reused=False,
            seconds=0,
            sha256=file_sha256(output / "training" / "adapter" / "adapter_model.safetensors"),
            trainable_parameters=1234,
        ),
        report=Report(
            path=output / "evaluation",
            fingerprint="4" * 64,
            reused=False,
            seconds=0,
            metrics={"base": metrics(0.1), "champion": None, "challenger": metrics(0.4)},
            differences={
                "base": {"rougeL": {"mean": 0.3, "low": 0.2, "high": 0.4}},
                "champion": None,
            },
            gate={"passed": True, "rules": []},
        ),
        store=Store(home.store),
    )


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; creating one takes seconds, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("database").resolve())
    _ = Tracker(home).client
    return home.mlflow / "mlflow.db"


@pytest.fixture(scope="session")
def trained(
    tiny_base: Path, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Shared by all tests, which read from it and leave it as it is."""
    project = tmp_path_factory.mktemp("project").resolve()
    return build_trained(project, tiny_base, migrated_database)


@pytest.fixture(scope="session")
def registered(trained: Trained) -> Version:
    """Version 1, registered from the project's folder as a person would."""
    before = Path.cwd()
    os.chdir(trained.project)
    try:
        return trained.register(trained.tracker())
    finally:
        os.chdir(before)


@pytest.fixture
def own_trained(tiny_base: Path, migrated_database: Path, tmp_path: Path) -> Trained:
    """For a test that breaks something."""
    return build_trained((tmp_path / "project").resolve(), tiny_base, migrated_database)


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the fresh process out, for tests that are about something else."""

    def verify(*_: object, **__: object) -> Verification:
        return Verification(
            rows=1,
            positions=4,
            dtype="float32",
            largest_difference=0.0,
            tolerance=1e-4,
            adapter_effect=1.0,
            answer="",
            finish_reason="stop",
            seconds=0.0,
        )

    monkeypatch.setattr("tasks.registration.work.verify_version", verify)


@pytest.fixture
def another_adapter(tmp_path: Path) -> Callable[[Trained, int], Trained]:
    """The same stages with another adapter."""

    def build(trained: Trained, seed: int) -> Trained:
        folder = tmp_path / f"adapter-{seed}"
        build_adapter(trained.base.path, folder, seed=seed)
        return trained.with_adapter(folder)

    return build
