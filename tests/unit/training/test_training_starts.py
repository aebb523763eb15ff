"""Adapters with a beginning or a schedule of their own: PiSSA, OLoRA, EVA, CorDA, LoRA-GA, AdaLoRA, LoRA+."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from pydantic import ValidationError
from safetensors.torch import load_file

from tasks.errors import UserError
from tasks.training import adalora, data_start, engine, loading, method_trainer, worker
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainingJob]
LOUD = {"max_steps": 4, "warmup_steps": 0, "lr_scheduler_type": "constant"}
# Nothing of ours, and nothing but the untouched base: what any server computes from the adapter.
PLAIN = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base, adapter, fixture = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()
config = json.load(open(f"{adapter}/adapter_config.json"))
tensors = load_file(f"{adapter}/adapter_model.safetensors")
for name in sorted(n for n in tensors if "lora_A" in n):
    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    last = module.rsplit(".", 1)[-1]
    rank = (config["rank_pattern"] or {}).get(last, config["r"])
    rank = (config["rank_pattern"] or {}).get(module, rank)
    alpha = (config["alpha_pattern"] or {}).get(last, config["lora_alpha"])
    alpha = (config["alpha_pattern"] or {}).get(module, alpha)
    assert len(tensors[name]) == rank, (module, rank)
    scale = alpha / (rank ** 0.5 if config["use_rslora"] else rank)
    delta = scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    model.get_submodule(module).weight.data += delta
rows = json.load(open(f"{fixture}/fixture.json"))["input_ids"]
expected = load_file(f"{fixture}/fixture.safetensors")["logits"]
with torch.no_grad():
    found = torch.stack([model(input_ids=torch.tensor([r])).logits[0, -4:] for r in rows])
print(json.dumps({"apart": float((found - expected).abs().max()), "config": config}))
"""


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


@pytest.mark.parametrize(
    "peft",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"qkv_proj": 2}},
        {"init_lora_weights": "olora", "alpha_pattern": {"o_proj": 3}, "use_rslora": True},
        {
            "init_lora_weights": "olora",
            "rank_pattern": {"qkv_proj": 2},
            "alpha_pattern": {"o_proj": 3},
        },
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArBr", "scale": "unit"}},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    ],
    ids=lambda peft: " ".join(f"{k}={v}" for k, v in peft.items())[:70],
)
def test_the_saved_adapter_is_a_plain_lora_of_the_untouched_base(
    peft: dict[str, Any], tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(tmp_path, training=LOUD, peft={"lora_dropout": 0.0} | peft)
    train(job)
    argv = [
        sys.executable,
        "-c",
        PLAIN,
        str(job.base),
        str(job.output / "adapter"),
        str(job.output),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["apart"] < 1e-4
    assert said["config"]["init_lora_weights"] is True
    assert {said["config"][f] for f in ("eva_config", "corda_config", "lora_ga_config")} == {None}


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga", "pissa"])
def test_a_start_depends_on_the_seed_alone_and_survives_an_interruption(
    start: str, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = {"init_lora_weights": start}
    whole = train(make_job(tmp_path / "whole", peft=peft, training=LOUD))
    torch.rand(11)
    job = make_job(tmp_path / "parts", peft=peft, training=LOUD)
    _interrupt_after(2, job, monkeypatch)
    result = train(job)
    assert result.resumed_from_step == 2
    assert result.adapter_sha256 == whole.adapter_sha256


def test_eva_starts_from_the_directions_of_the_inputs_and_spreads_the_ranks(
    tmp_path: Path, make_job: MakeJob
) -> None:
    rows = engine.read_rows(make_job(tmp_path).tokens / "train.parquet")
    precision = loading.choose_precision("float32")
    made = engine.build_trainer(
        make_job(tmp_path, peft={"init_lora_weights": "eva"}), rows, precision
    )
    ranks = []
    for module in made.model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a = module.lora_A["default"].weight.detach()
            # Principal directions stand at right angles.
            assert torch.allclose(a @ a.T, torch.diag((a @ a.T).diagonal()), atol=1e-4)
            assert not module.lora_B["default"].weight.any()
            ranks.append(len(a))
    assert len(set(ranks)) > 1
    assert sum(ranks) <= 8 * 4


def test_eva_without_enough_tokens_is_refused_before_it_waits_for_ever(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_start, "EVA_TOKENS_PER_COMPONENT", 10_000)
    with pytest.raises(UserError, match=r"directions \(r x rho\) and wants 80000 tokens"):
        worker.train(make_job(tmp_path, peft={"init_lora_weights": "eva"}))


def test_loftq_without_a_gpu_is_refused_in_words(tmp_path: Path, make_job: MakeJob) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    peft = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
    with pytest.raises(UserError, match=r"on an NVIDIA GPU only, and there is none\. Take `pissa`"):
        worker.train(make_job(tmp_path, peft=peft))


ADALORA = {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "target_modules": ["qkv_proj"]}


def ada(make_job: MakeJob, folder: Path, **more: Any) -> TrainingJob:
    settings = TrainingSettings(peft_config=ADALORA | more)
    return make_job(
        folder,
        peft_config=settings.resolved_peft_config(),
        training={"warmup_steps": 0, "save_steps": 2},
    )


def test_adalora_takes_ranks_away_until_the_budget_is_met(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = ada(make_job, tmp_path)
    result = train(job)
    config = json.loads((job.output / "adapter" / "adapter_config.json").read_text())
    assert config["total_step"] == result.steps == 14
    assert (config["tinit"], config["tfinal"]) == (1, 3)
    # Two modules, two directions each on average; six each at the start.
    assert sum(sum(kept) for kept in config["rank_pattern"].values()) == 4
    tensors = load_file(job.output / "adapter" / "adapter_model.safetensors")
    assert sum(len(t) for name, t in tensors.items() if "lora_A" in name) == 4


@pytest.mark.parametrize("step", [2, 6, 12], ids=["warming up", "pruning", "after pruning"])
def test_adalora_goes_on_from_a_checkpoint_with_the_same_bytes(
    step: int, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(ada(make_job, tmp_path / "whole"))
    job = ada(make_job, tmp_path / "parts")
    _interrupt_after(step, job, monkeypatch)
    result = train(job)
    assert result.resumed_from_step == step
    assert result.adapter_sha256 == whole.adapter_sha256


def test_adaloras_penalty_is_in_the_gradients_and_not_in_the_loss(
    tmp_path: Path, make_job: MakeJob
) -> None:
    free = train(ada(make_job, tmp_path / "free", orth_reg_weight=0.0))
    held = train(ada(make_job, tmp_path / "held", orth_reg_weight=0.5))
    assert held.first_loss == pytest.approx(free.first_loss, abs=1e-6)
    assert _skew(tmp_path / "held") < 0.9 * _skew(tmp_path / "free")


def _skew(folder: Path) -> float:
    """How far the kept directions of A are from right angles and unit length."""
    tensors = load_file(folder / "output" / "adapter" / "adapter_model.safetensors")
    grams = [t @ t.T for name, t in tensors.items() if "lora_A" in name and len(t)]
    return float(sum((gram - torch.eye(len(gram))).norm() for gram in grams))


def test_a_schedule_that_the_recipe_names_is_kept() -> None:
    assert adalora.schedule({"tinit": 3, "total_step": 40}, 14) == {
        "tinit": 3, "tfinal": 10, "total_step": 40,
    }  # fmt: skip


def test_lora_plus_gives_lora_b_the_rate_that_pefts_own_optimizer_gives_it(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(tmp_path, loraplus_lr_ratio=16.0, training=LOUD | {"weight_decay": 0.1})
    rows = engine.read_rows(job.tokens / "train.parquet")
    made = engine.build_trainer(job, rows, loading.choose_precision("float32"))
    ours = made.create_optimizer()
    theirs = create_loraplus_optimizer(
        made.model, torch.optim.AdamW, lr=2e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    names = {id(p): name for name, p in made.model.named_parameters()}

    def rates(optimizer: Any) -> dict[str, tuple[float, float]]:
        return {
            names[id(p)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    assert rates(ours) == rates(theirs)
    assert {rate for rate, _ in rates(ours).values()} == {2e-2, 16 * 2e-2}
    # The logged rate is the first group's.
    assert ours.param_groups[0]["lr"] == 2e-2


def test_lora_plus_follows_the_schedule_and_survives_an_interruption(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plus: dict[str, Any] = {"loraplus_lr_ratio": 4.0}
    whole = train(make_job(tmp_path / "whole", **plus))
    job = make_job(tmp_path / "parts", **plus)
    _interrupt_after(5, job, monkeypatch)
    assert train(job).adapter_sha256 == whole.adapter_sha256
    assert train(make_job(tmp_path / "without")).adapter_sha256 != whole.adapter_sha256


def test_lora_plus_of_another_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="peft_type is IA3"):
        TrainingSettings(peft_config={"peft_type": "IA3"}, loraplus_lr_ratio=16)


def _interrupt_after(step: int, job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM arrives in this step; what was published until then is nothing."""

    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == step - 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(job)
    assert not job.result.exists()
