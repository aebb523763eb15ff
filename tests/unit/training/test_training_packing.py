"""Packed rows teach exactly what the same rows teach alone, or the training is refused."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AttentionInterface

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import UserError
from tasks.home import Home
from tasks.tokenization.packing import pack, write_packs
from tasks.training import collators, engine, loading, method_trainer, trainer, worker
from tasks.training.inspection import inspect_training
from tasks.training.isolation import require_isolation
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.packs import EXAMPLE_LENGTHS, packed_table, read_packs
from tasks.training.settings import TrainingSettings
from tasks.training.summary import summary

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]
CAPACITY = 64
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": SMALL,
    "Qwen3": SMALL | {"head_dim": 8},
    # Shorter than most rows: the window must count from an example's own beginning.
    "Mistral": SMALL | {"sliding_window": 8},
    "GPT2": {"vocab_size": 4096, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "Bloom": {"vocab_size": 4096, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Path]:
    """A tiny base of another architecture, with the same tokenizer."""

    def make(name: str) -> Path:
        if name == "Phi3":
            return tiny_base
        folder = tmp_path_factory.getbasetemp() / f"tiny-{name}"
        if not folder.exists():
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
            kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
            getattr(transformers, kind)(config).save_pretrained(folder)
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(tiny_base / file, folder / file)
        return folder

    return make


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, tokens: Tokens) -> Path:
    """The rows of `tokens`, with packs as the tokenization stage writes them."""
    folder = tmp_path_factory.mktemp("packed") / "rows"
    shutil.copytree(tokens.path, folder)
    rows = engine.read_rows(folder / "train.parquet")
    write_packs(folder, [len(ids) for ids in rows["input_ids"]], CAPACITY)
    return folder


@pytest.fixture
def job(tmp_path: Path, make_job: MakeJob, packed: Path) -> MakeJob:
    def make(name: str = "working", **changes: Any) -> TrainingJob:
        return make_job(tmp_path / name, **({"tokens": packed} | changes))

    return make


@pytest.fixture
def build(
    job: MakeJob, packed: Path, base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A trainer on packed rows, as a GPU reads them, whose adapter already does something."""
    monkeypatch.setattr(trainer.AdapterTrainer, "use_kernels", lambda _: False)

    def make(architecture: str = "Phi3", attention: str | None = None, **changes: Any) -> Any:
        task = job(base=base_of(architecture), **({"peft": {"lora_dropout": 0.0}} | changes))
        rows = engine.read_rows(packed / "train.parquet")
        found = read_packs(packed)
        assert found is not None
        precision = loading.choose_precision("float32")
        ours = engine.build_trainer(task, engine.in_packs(rows, found), precision)
        if attention:
            ours.model.get_base_model().set_attn_implementation(attention)
        torch.manual_seed(1)
        for parameter in adapter(ours):
            parameter.data.normal_(std=0.3)
        return ours

    return make


def adapter(ours: trainer.AdapterTrainer) -> list[torch.nn.Parameter]:
    return [p for p in ours.model.parameters() if p.requires_grad]


def forward(ours: trainer.AdapterTrainer, batch: dict[str, Any]) -> torch.Tensor:
    inputs = {k: v for k, v in batch.items() if k not in ("labels", collators.NUM_TOKENS)}
    logits: torch.Tensor = ours.model(**inputs, use_cache=False).logits
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["Phi3", "Llama", "Qwen3", "Mistral", "GPT2"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_packed_logits_are_those_of_the_example_alone(
    build: Callable[..., Any], architecture: str, attention: str, training: bool
) -> None:
    peft = {"lora_dropout": 0.0, "target_modules": "all-linear"}
    ours = build(architecture, attention, peft=peft)
    # GPT-2 has dropout of its own.
    ours.model.train(training and architecture != "GPT2")
    packs = [ours.train_dataset[at] for at in range(len(ours.train_dataset))]
    assert max(len(p[EXAMPLE_LENGTHS]) for p in packs) > 2
    assert len({len(p["input_ids"]) for p in packs}) > 1, "no pack is padded"
    with torch.no_grad():
        logits = forward(ours, ours.data_collator(packs))
        worst = 0.0
        for line, one in zip(logits, packs, strict=True):
            begin = 0
            for length in one[EXAMPLE_LENGTHS]:
                ids = torch.tensor([one["input_ids"][begin : begin + length]])
                alone = ours.model(input_ids=ids, use_cache=False).logits[0]
                worst = max(worst, (line[begin : begin + length] - alone).abs().max().item())
                begin += length
    assert worst <= 1e-5


@pytest.mark.parametrize("answers_only", [True, False], ids=["ours", "TRL's"])
@pytest.mark.parametrize("first_token_trained", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["Phi3", "Llama"])
def test_loss_and_gradients_are_those_of_the_rows_alone(
    build: Callable[..., Any],
    packed: Path,
    architecture: str,
    attention: str,
    first_token_trained: bool,
    answers_only: bool,
) -> None:
    ours = build(architecture, attention)
    ours._answers_only = answers_only
    rows = engine.read_rows(packed / "train.parquet")
    packs = ours.train_dataset
    if first_token_trained:
        rows, packs = (side.map(lambda row: {"labels": row["input_ids"]}) for side in (rows, packs))
    results = []
    for examples in (rows, packs):
        batch = ours.data_collator([examples[at] for at in range(len(examples))])
        [batches], count = ours.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        loss = ours.compute_loss(ours.model, batches, num_items_in_batch=count)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter(ours))])
        results.append((int(count), loss.item(), gradient))
    (count, loss, gradient), (count_packed, loss_packed, gradient_packed) = results
    assert count_packed == count
    assert loss_packed == pytest.approx(loss, abs=1e-6)
    assert functional.cosine_similarity(gradient, gradient_packed, dim=0) >= 0.99999
    assert torch.allclose(gradient, gradient_packed, atol=1e-6)


def test_a_batch_of_packs_restarts_positions_and_has_no_attention_mask() -> None:
    packs = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], EXAMPLE_LENGTHS: [3, 2]},
        {"input_ids": [4, 3], "labels": [-100, 3], EXAMPLE_LENGTHS: [2]},
    ]
    batch = collators.PackCollator(pad_id=1, multiple=4, flat=False)(packs)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 1, 1], [4, 3, 1, 1, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, 6, 7, -100, 9, -100, -100, -100],
        [-100, 3, -100, -100, -100, -100, -100, -100],
    ]
    assert "attention_mask" not in batch
    assert batch[collators.NUM_TOKENS] == 7


def test_a_flat_batch_is_one_line_without_padding_that_names_the_boundaries() -> None:
    packs = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], EXAMPLE_LENGTHS: [3, 2]},
        {"input_ids": [4, 3], "labels": [-100, 3], EXAMPLE_LENGTHS: [2]},
    ]
    batch = collators.PackCollator(pad_id=1, multiple=8, flat=True)(packs)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, 3]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 7]
    assert batch["max_length_q"] == 3
    assert "attention_mask" not in batch


def test_packs_hold_the_tokens_of_their_rows_in_order(packed: Path) -> None:
    rows = pq.read_table(packed / "train.parquet")
    packs = read_packs(packed)
    assert packs is not None
    table = packed_table(rows, packs)
    ids, labels = rows["input_ids"].to_pylist(), rows["labels"].to_pylist()
    for at, members in enumerate(packs.rows.to_pylist()):
        assert table["input_ids"][at].as_py() == [token for row in members for token in ids[row]]
        assert table["labels"][at].as_py() == [label for row in members for label in labels[row]]
        assert table[EXAMPLE_LENGTHS][at].as_py() == [len(ids[row]) for row in members]
    assert packs.fill(sum(map(len, ids))) == pack([len(row) for row in ids], CAPACITY).fill


def test_packs_of_other_rows_are_not_read(packed: Path, tmp_path: Path) -> None:
    write_packs(tmp_path, [10] * 27, CAPACITY)
    packs = read_packs(tmp_path)
    assert packs is not None
    with pytest.raises(AssertionError, match="packed twice or never"):
        packed_table(pq.read_table(packed / "train.parquet"), packs)


def train(task: TrainingJob) -> TrainingResult:
    worker.train(task)
    return TrainingResult.model_validate_json(task.result.read_text())


def test_a_training_in_packs_learns_and_says_rows_packs_and_fill(
    job: MakeJob, tokens: Tokens, capsys: pytest.CaptureFixture[str]
) -> None:
    task = job(training={"per_device_train_batch_size": 2, "eval_strategy": "epoch"})
    result = train(task)
    packs = read_packs(task.tokens)
    assert packs is not None
    assert (result.rows, result.packs) == (26, len(packs.rows))
    assert result.fill == pytest.approx(tokens.tokens["train"] / (len(packs.rows) * CAPACITY))
    assert result.steps == 2 * -(-len(packs.rows) // 2)
    assert result.tokens == 2 * tokens.tokens["train"]
    assert result.final_loss < result.first_loss
    history = [json.loads(x) for x in (task.output / "history.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in entry for entry in history) == 2
    words = f"26 rows in {result.packs} packs, {result.fill:.1%} full"
    assert words in summary(
        result, peft_config={}, training_config={}, quantization="none", seed=1, picture=None
    )
    assert (
        f"Reading {words}: an optimizer step of 2 packs takes in about" in capsys.readouterr().out
    )


def test_optimizer_steps_on_the_same_rows_are_the_same_packed_or_not(
    job: MakeJob, tokens: Tokens
) -> None:
    """All rows in each step, in micro-batches of unequal answers: the loss is weighted by token."""
    peft, steps = {"lora_dropout": 0.0}, {"max_steps": 4, "learning_rate": 1e-2}
    alone = {"per_device_train_batch_size": 13, "gradient_accumulation_steps": 2}
    together = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 100}
    rows = train(job("rows", tokens=tokens.path, peft=peft, training=steps | alone))
    packs = train(job("packs", peft=peft, training=steps | together))
    assert rows.packs is None
    assert packs.first_loss == pytest.approx(rows.first_loss, abs=1e-6)
    assert packs.final_loss == pytest.approx(rows.final_loss, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"training": {"activation_checkpointing": True}},
        {"training": {"train_sampling_strategy": "sequential"}},
        {"training": {"loss_type": "dft"}},
    ],
    ids=["bfloat16", "activation checkpointing", "sequential", "TRL's loss"],
)
def test_packs_are_trained_with_other_settings_too(
    job: MakeJob, tokens: Tokens, changes: dict[str, Any]
) -> None:
    result = train(job(**changes))
    # The loss that dft reports is weighed by the probabilities themselves and need not fall.
    assert math.isfinite(result.final_loss)
    assert "loss_type" in changes.get("training", {}) or result.final_loss < result.first_loss
    assert result.tokens == 2 * tokens.tokens["train"]
    assert result.packs is not None


@pytest.mark.parametrize("step", [3, 9], ids=["epoch 1", "epoch 2"])
def test_a_training_in_packs_goes_on_with_the_same_bytes(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = {"per_device_train_batch_size": 2, "save_steps": 2}
    whole = train(job("whole", training=settings))
    assert whole.steps == 10

    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == step - 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = job("stopped", training=settings)
    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(stopped)
    result = train(stopped)
    assert result.resumed_from_step == step
    assert result.adapter_sha256 == whole.adapter_sha256


def test_packs_are_shuffled_by_seed_and_epoch(build: Callable[..., Any]) -> None:
    ours = build()
    sampler = ours._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(len(ours.train_dataset)))
    assert first != second
    assert first != sorted(first)


def test_an_inspection_counts_the_steps_of_packs(
    settings: TrainingSettings, base: Base, tokens: Tokens, packed: Path, home: Home
) -> None:
    found = inspect_training(
        settings, base=base, tokens=tokens.model_copy(update={"path": packed}), home=home
    )
    packs = read_packs(packed)
    assert packs is not None
    assert found.steps == 2 * -(-len(packs.rows) // 4)
    assert found.seconds is not None


@pytest.fixture
def deaf_attention() -> Iterator[str]:
    """Causal attention that is handed no mask, as implementations of other servers are."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        assert mask is None
        return sdpa_attention_forward(module, query, key, value, None, **options)

    AttentionInterface.register("deaf", attend)
    yield "deaf"
    AttentionInterface._global_mapping.pop("deaf")


def test_an_attention_that_cannot_isolate_is_refused(
    build: Callable[..., Any], deaf_attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_base

    def deaf(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        model.set_attn_implementation(deaf_attention)
        return model

    monkeypatch.setattr(loading, "load_base", deaf)
    with pytest.raises(
        UserError, match=r"Phi3ForCausalLM with `deaf` attention lets an example see"
    ):
        build()


@pytest.fixture
def examples_of_their_own() -> Iterator[str]:
    """sdpa for flat lines, as flash attention computes on a GPU: it goes by the boundaries it is told."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        ends = options.pop("cu_seq_lens_q").tolist()
        parts = [
            sdpa_attention_forward(
                module, *(x[:, :, begin:end] for x in (query, key, value)), None, **options
            )[0]
            for begin, end in pairwise(ends)
        ]
        return torch.cat(parts, dim=1), None

    AttentionInterface.register("by_boundaries", attend)
    yield "by_boundaries"
    AttentionInterface._global_mapping.pop("by_boundaries")


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("flat", [False, True], ids=["padded", "flat"])
def test_isolation_is_seen_in_every_layout(
    build: Callable[..., Any], examples_of_their_own: str, multiple: int, flat: bool
) -> None:
    """A GPU's rows are padded to a multiple of eight, or lie in one line."""
    ours = build()
    collator = collators.PackCollator(0, multiple, flat=flat)
    base = ours.model.get_base_model()
    if flat:
        base.set_attn_implementation(examples_of_their_own)
    require_isolation(ours.model, collator, ours.model.active_peft_config)


def test_a_training_of_packs_begins_with_rows_padded_as_for_a_gpu(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "padding_multiple", lambda: 8)
    monkeypatch.setattr(trainer.AdapterTrainer, "use_kernels", lambda _: False)
    result = train(job(training={"max_steps": 2, "eval_strategy": "epoch"}))
    assert result.packs is not None


@pytest.mark.parametrize(
    ("architecture", "targets"), [("Mamba", ["in_proj", "x_proj"]), ("Bloom", ["query_key_value"])]
)
def test_a_base_that_carries_a_state_along_or_knows_no_positions_is_refused(
    build: Callable[..., Any], architecture: str, targets: list[str]
) -> None:
    words = rf"{architecture}ForCausalLM .* lets an example see .*`tokenization\.packing: false`"
    with pytest.raises(UserError, match=words):
        build(architecture, peft={"target_modules": targets})


def test_positions_that_do_not_restart_are_refused(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learned position is added to the token: no mask undoes a wrong one."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2Model

    real = GPT2Model.forward

    def count_on(self: Any, *args: Any, position_ids: Any = None, **options: Any) -> Any:
        hook = self.wpe.register_forward_pre_hook(
            lambda _, given: (torch.arange(given[0].shape[-1]).expand_as(given[0]),)
        )
        try:
            return real(self, *args, position_ids=position_ids, **options)
        finally:
            hook.remove()

    monkeypatch.setattr(GPT2Model, "forward", count_on)
    with pytest.raises(UserError, match=r"GPT2LMHeadModel .* otherwise than the example alone"):
        build("GPT2")


@pytest.mark.parametrize(
    ("peft", "words"),
    [
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
            "PROMPT_TUNING puts its trained prompt before a row",
        ),
        ({"alora_invocation_tokens": [5, 6]}, "only the last example of a pack"),
    ],
)
def test_methods_that_need_rows_of_their_own_are_refused(
    job: MakeJob, peft: dict[str, Any], words: str
) -> None:
    plain = TrainingSettings(peft_config=peft).resolved_peft_config()
    task = job().model_copy(update={"peft_config": plain})
    with pytest.raises(UserError, match=words):
        worker.train(task)


def test_rows_alone_are_not_asked_whether_they_can_be_packed(
    job: MakeJob, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(engine, "require_isolation", refuse)
    assert train(job(tokens=tokens.path, training={"max_steps": 2})).packs is None
