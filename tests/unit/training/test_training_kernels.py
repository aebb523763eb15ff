"""Lines of examples through our kernels give the loss and the gradients that the model gives."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from tasks.training import engine, loading, losses, worker
from tasks.training.batches import micro_batches_together
from tasks.training.collators import NO_LOSS, Collator, LineCollator
from tasks.training.job import TrainingJob
from tasks.training.kernels import attention, install, proof
from tasks.training.kernels.install import Kernels
from tasks.training.kernels.layout import Layout, asked_of, groups_of
from tasks.training.line_parts import line_parts
from tasks.training.packs import EXAMPLE_LENGTHS

MakeJob = Callable[..., TrainingJob]
SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Phi3": SMALL | {"partial_rotary_factor": 0.5},
    "Llama": SMALL,
    "Qwen2": SMALL,
    "Qwen3": SMALL | {"head_dim": 8},
    "Mistral": SMALL | {"sliding_window": 8},
    "Gemma": SMALL | {"head_dim": 8},
    # What the kernels cannot know: caps on the scores, another rotation, no rotation at all.
    "Gemma2": SMALL | {"head_dim": 8},
    "Cohere": SMALL,
    "GPT2": {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
}
LEFT_ALONE = {"Gemma2", "Cohere", "GPT2"}


def adapted(name: str, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    torch.manual_seed(0)
    values = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**values)
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    base = getattr(transformers, kind)(config).to(dtype)
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    return get_peft_model(base, LoraConfig(**options))


def rows(lengths: list[int], prompt: float = 1 / 3) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in lengths:
        ids = torch.randint(1, 256, (length,), generator=generator).tolist()
        asked = int(length * prompt)
        made.append({"input_ids": ids, "labels": [NO_LOSS] * asked + ids[asked:]})
    return made


def short_answers(lengths: list[int]) -> list[dict[str, Any]]:
    """An answer of a fifth of the row; in the first row none at all, in the last one two."""
    first, *others = rows(lengths, prompt=0.8)
    first["labels"] = [NO_LOSS] * len(first["labels"])
    others[-1]["labels"][2:4] = others[-1]["input_ids"][2:4]
    return [first, *others]


def alike(lengths: list[int]) -> list[dict[str, Any]]:
    """Rows that begin alike, up to the last token that is not asked to predict an answer."""
    made = rows(lengths, prompt=0.8)
    begin = made[0]["input_ids"][: int(0.8 * min(lengths)) - 1]
    for row in made:
        row["input_ids"][: len(begin)] = begin
    return made


def no_autocast() -> Any:
    return torch.autocast("cpu", enabled=False)


def in_bfloat16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def gradients(loss: torch.Tensor, model: Any) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def move(model: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator) * 0.1


def moved_with_kernels() -> tuple[Any, Kernels]:
    """A model of Phi-3's kind whose adapter does something, and all kernels under it."""
    model = adapted("Phi3")
    move(model)
    kernels = Kernels(model, no_autocast)
    kernels.install(pointwise_too=True)
    return model, kernels


@pytest.mark.parametrize("answers", [rows, short_answers, alike])
@pytest.mark.parametrize(
    "lengths",
    [[9, 9, 9, 30], [5, 200, 17, 18, 19, 64], [700, 40], [30, 1600], [660, 700, 701, 660]],
)
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - LEFT_ALONE))
def test_a_line_gives_the_loss_and_gradients_of_its_rows(
    name: str, lengths: list[int], answers: Callable[[list[int]], list[dict[str, Any]]]
) -> None:
    model = adapted(name)
    move(model)
    sample = answers(lengths)
    expected = losses.sum_over_answers(model, model.get_output_embeddings(), Collator(0, 1)(sample))
    wanted = gradients(expected, model)
    kernels = Kernels(model, no_autocast)
    kernels.install(pointwise_too=True)
    found = losses.sum_over_line(kernels, LineCollator()(sample))
    gradient = gradients(found, model)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert functional.cosine_similarity(gradient, wanted, dim=0) >= 0.99999
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([9, 9, 9, 30], [57]),
        ([64, 5, 18, 200, 19, 17], [59, 64, 200]),
        # An example is never cut.
        ([700, 40], [40, 700]),
        ([20] * 12, [80, 80, 80]),
    ],
)
def test_a_long_line_goes_through_in_parts_with_the_same_loss_and_gradients(
    lengths: list[int], sizes: list[int]
) -> None:
    model, kernels = moved_with_kernels()
    line = LineCollator()(rows(lengths))
    whole = losses.sum_over_line(kernels, line)
    parts = list(line_parts(line, 80))
    assert [part["input_ids"].numel() for part in parts] == sizes
    assert [int(part["num_tokens"]) for part in parts] == sizes
    assert sum((part[attention.LAYOUT].own for part in parts), ()) == line[attention.LAYOUT].own
    found = sum(losses.sum_over_line(kernels, part) for part in parts)
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(
        gradients(found, model), gradients(whole, model), rtol=1e-4, atol=1e-5
    )


def row(ids: list[int], prompt: int) -> dict[str, Any]:
    return {"input_ids": ids, "labels": [NO_LOSS] * prompt + ids[prompt:]}


BEGIN = [11, 12, 13, 14, 15, 16, 17, 18]


def test_a_beginning_that_all_rows_share_is_computed_once() -> None:
    line = LineCollator()([row([*BEGIN, 1, 2, 3], 10), row([*BEGIN, 1, 9], 9)])
    assert line["input_ids"].tolist() == [[*BEGIN, 1, 9, 1, 2, 3]]
    assert line["position_ids"].tolist() == [[*range(8), 8, 9, 8, 9, 10]]
    assert line["labels"].tolist() == [[*[NO_LOSS] * 9, 9, NO_LOSS, NO_LOSS, 3]]
    assert line[attention.LAYOUT] == Layout(8, (2, 3))
    # Counted as rows have them.
    assert line["num_tokens"] == 21


@pytest.mark.parametrize(
    "rows",
    [
        # Its last token predicts answers, of which each row has its own.
        [row([*BEGIN, 1], 8), row([*BEGIN, 2], 8)],
        # Texts: every token is learned.
        [row([*BEGIN, 1, 2], 0)] * 2,
        [row([*BEGIN, 1, 2], 9)],
        [row([*BEGIN, 1, 2], 9), row([*BEGIN[:7], 9, 1, 2], 9)],
    ],
)
def test_other_beginnings_stay_where_they_are(rows: list[dict[str, Any]]) -> None:
    line = LineCollator()(rows)
    assert line[attention.LAYOUT] == Layout(0, tuple(len(row["input_ids"]) for row in rows))
    assert line["input_ids"].numel() == line["num_tokens"]


def test_a_preflight_takes_no_comfort_from_what_the_longest_rows_share() -> None:
    sample = [row([*BEGIN, 1, 2, 3], 10), row([*BEGIN, 1, 9], 9)]
    line = LineCollator().unshared(sample)
    assert line[attention.LAYOUT] == Layout(0, (10, 11))
    assert line["input_ids"].numel() == 21


@pytest.mark.parametrize("lengths", [[3], [1, 2], [5, 400, 9], [200]])
def test_the_proof_has_rows_that_share_a_beginning_and_have_answers(lengths: list[int]) -> None:
    sample = proof._sample(rows(lengths))
    assert LineCollator()(sample)[attention.LAYOUT].shared == 16
    assert all(sum(label != NO_LOSS for label in one["labels"]) > 1 for one in sample)


def test_a_row_without_an_answer_keeps_a_token_of_its_own() -> None:
    bare = {"input_ids": [*BEGIN, 1], "labels": [NO_LOSS] * 9}
    assert LineCollator()([bare, bare])[attention.LAYOUT] == Layout(8, (1, 1))


@pytest.mark.parametrize(("begin", "count"), [(48, 2), (504, 3)])
def test_each_part_of_a_long_line_has_the_shared_beginning(begin: int, count: int) -> None:
    model, kernels = moved_with_kernels()
    sample = rows([begin + length for length in (40, 41, 40, 44, 60, 40)], prompt=0.99)
    for at, one in enumerate(sample):
        one["input_ids"][:begin] = sample[0]["input_ids"][:begin]
        one["labels"][begin + 20 + at :] = one["input_ids"][begin + 20 + at :]
    line = LineCollator()(sample)
    whole = losses.sum_over_line(kernels, line)
    parts = list(line_parts(line, 200))
    assert len(parts) == count
    assert {part[attention.LAYOUT].shared for part in parts} == {begin}
    assert sum(int(part["num_tokens"]) for part in parts) == int(line["num_tokens"])
    assert sum(part["input_ids"].numel() for part in parts) == line["input_ids"].numel() + begin * (
        count - 1
    )
    found = sum(losses.sum_over_line(kernels, part) for part in parts)
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(
        gradients(found, model), gradients(whole, model), rtol=1e-4, atol=1e-5
    )


def test_every_kernel_of_the_default_architecture_is_in_place() -> None:
    model = adapted("Phi3")
    before = {name: vars(m).get("forward") for name, m in model.named_modules()}
    kernels = Kernels(model, no_autocast)
    kernels.install(pointwise_too=True)
    replaced = {
        type(m).__name__ for n, m in model.named_modules() if vars(m).get("forward") != before[n]
    }
    names = ("RMSNorm", "MLP", "DecoderLayer", "RotaryEmbedding")
    assert replaced == {"Linear", *(f"Phi3{name}" for name in names)}
    assert model.config._attn_implementation == attention.NAME
    kernels.remove()
    after = {name: vars(m).get("forward") for name, m in model.named_modules()}
    assert after == before
    assert model.config._attn_implementation == "sdpa"


def test_another_model_of_the_same_class_computes_as_before() -> None:
    """The rotation of a class's models is one function of its file."""
    other = adapted("Llama")
    move(other)
    sample = Collator(0, 1)(rows([30, 20, 40]))

    def computed() -> tuple[float, torch.Tensor]:
        loss = losses.sum_over_answers(other, other.get_output_embeddings(), sample)
        return loss.item(), gradients(loss, other)

    before = computed()
    kernels = Kernels(adapted("Llama"), no_autocast)
    kernels.install(pointwise_too=True)
    try:
        torch.testing.assert_close(computed(), before, rtol=1e-4, atol=1e-4)
    finally:
        kernels.remove()


def test_the_gradient_of_a_fused_projection_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not as that of three views, each filled with zeros to the size of the whole."""
    given: list[int] = []
    apply = attention._PerExample.apply
    monkeypatch.setattr(
        attention._PerExample,
        "apply",
        lambda work, *inputs: (given.append(len(inputs)), apply(work, *inputs))[1],
    )
    for name in ("Phi3", "Llama"):
        model = adapted(name)
        kernels = Kernels(model, no_autocast)
        kernels.install(pointwise_too=True)
        losses.sum_over_line(kernels, LineCollator()(rows([30, 20])))
        kernels.remove()
    assert given == [1, 1, 1, 3, 3, 3]


def test_attention_is_cut_to_the_answers_in_the_last_layer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted("Phi3")
    kernels = Kernels(model, no_autocast)
    kernels.install(pointwise_too=True)
    compared: list[int] = []
    bmm = torch.bmm
    monkeypatch.setattr(
        torch, "bmm", lambda p, v: (compared.append(p.shape[1] * p.shape[2]), bmm(p, v))[1]
    )
    losses.sum_over_line(kernels, LineCollator()(short_answers([9, 40])))
    # Two heads share a head of keys.
    whole, cut = [2 * 9 * 9, 2 * 40 * 40], [2 * 1 * 9, 2 * 10 * 40]
    assert compared == whole + whole + cut


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_proof_lets_pass_what_is_equal_and_nothing_else(name: str) -> None:
    model = adapted(name)
    kernels = proof.proved_kernels(model, rows([30, 20, 40]), no_autocast)
    assert (kernels is None) == (name in LEFT_ALONE)


def test_the_proof_leaves_weights_and_random_state_as_they_were() -> None:
    model = adapted("Phi3")
    weights = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert proof.proved_kernels(model, rows([30, 20, 40]), no_autocast)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_the_proof_refuses_a_kernel_that_computes_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted("Phi3")
    right = install.pointwise.FusedGatedSilu

    class Wrong(right):  # type: ignore[misc, valid-type]
        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return right.backward(ctx, *gradients) * 0.5

    monkeypatch.setattr(install.pointwise, "FusedGatedSilu", Wrong)
    kernels = proof.proved_kernels(model, rows([30, 20, 40]), no_autocast)
    assert kernels is not None, "attention and LoRA are equal without the small operations"
    assert "forward" not in vars(model.get_base_model().model.layers[0].mlp)


@pytest.mark.parametrize(
    "lora", [{}, {"use_dora": True}, {"lora_dropout": 0.0, "use_rslora": True}, {"bias": "all"}]
)
def test_bfloat16_lines_are_near_the_models_own(lora: dict[str, Any]) -> None:
    model = adapted("Phi3", torch.bfloat16, **lora)
    for p in model.parameters():
        if p.requires_grad and p.dim() == 2:
            p.data = p.data.float()
    assert proof.proved_kernels(model, rows([30, 20, 40]), in_bfloat16) is not None


def test_checkpointing_computes_the_last_layer_again_at_the_same_positions() -> None:
    model = adapted("Phi3")
    move(model)
    sample = LineCollator()(rows([30, 20, 40]))
    kernels = Kernels(model, no_autocast)
    kernels.install(pointwise_too=True)
    plain = gradients(losses.sum_over_line(kernels, sample), model)
    model.train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(losses.sum_over_line(kernels, sample), model)
    assert torch.allclose(plain, again, rtol=1e-5, atol=1e-7)


def test_examples_of_about_one_length_are_multiplied_together() -> None:
    groups = groups_of(Layout(0, (5, 5, 5, 40, 44, 200)))
    assert [(g.begin, g.end, g.count, g.length) for g in groups] == [
        (0, 15, 3, 5),
        (15, 99, 2, 44),
        (99, 299, 1, 200),
    ]
    assert groups[0].padded is None
    line = torch.arange(299.0)[None, :, None]
    part = groups[1].take(line)
    assert part.shape == (1, 2, 44, 1)
    assert part[0, 0, :40, 0].tolist() == list(range(15, 55))
    copy = torch.zeros_like(line)
    for group in groups:
        group.put(group.take(line), copy)
    assert torch.equal(copy, line)


def test_a_long_beginning_is_put_before_a_few_examples_at_a_time() -> None:
    groups = groups_of(Layout(3000, (20,) * 5))
    assert [(g.before, g.begin, g.count) for g in groups] == [
        (0, 0, 1),
        (3000, 3000, 2),
        (3000, 3040, 2),
        (3000, 3080, 1),
    ]


def test_the_last_layer_asks_for_the_attention_of_predicting_tokens_alone() -> None:
    groups = groups_of(Layout(0, (5, 5, 40, 44, 200)))
    positions = torch.tensor([3, 48, 49, 93])
    assert asked_of(groups[1], torch.arange(30, 94)) is groups[1], "all of it is no more work"
    line, copy = torch.arange(294.0)[None, :, None], torch.zeros(1, 294, 1)
    taken = []
    for group in groups:
        asked = asked_of(group, positions)
        taken.append(asked.take(line)[0, :, :, 0].tolist())
        asked.put(asked.take(line), copy)
    # Filled up with the last token of each example.
    assert taken == [[[3], [9]], [[48, 49], [93, 93]], [[293]]]
    assert copy.flatten().nonzero()[:, 0].tolist() == positions.tolist()
    assert torch.equal(copy[:, positions], line[:, positions])


def test_a_line_holds_each_example_once_and_restarts_positions() -> None:
    packed = {
        "input_ids": [5, 6, 7, 8, 9],
        "labels": [5, 6, 7, 8, 9],
        EXAMPLE_LENGTHS: [3, 2],
    }
    batch = LineCollator()([packed, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[4, 8, 9, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, -100, 9, -100, 6, 7]]
    assert batch[attention.LAYOUT] == Layout(0, (1, 2, 3))
    assert batch["num_tokens"] == 6


def test_micro_batches_are_computed_together_up_to_a_line_and_never_across_a_step() -> None:
    assert micro_batches_together(4, 4, mean_tokens=100) == 4
    assert micro_batches_together(4, 4, mean_tokens=300) == 2
    assert micro_batches_together(4, 4, mean_tokens=500) == 1
    assert micro_batches_together(4, 6, mean_tokens=200) == 3
    assert micro_batches_together(1, 1, mean_tokens=5000) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_by_kernels_is_the_training_without_them(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """With dropout the masks differ, and the losses by little."""
    monkeypatch.setattr(worker, "_stop_on_sigterm", worker.threading.Event)
    histories = {}
    for used in (True, False):
        job = make_job(
            tmp_path / str(used),
            peft={"lora_dropout": dropout},
            training={"gradient_accumulation_steps": 2, "logging_steps": 1},
        )
        precision = loading.choose_precision("float32")
        with monkeypatch.context() as patch:
            if not used:
                patch.setattr(engine.AdapterTrainer, "use_kernels", lambda self: False)
            ours = engine.build_trainer(
                job, engine.read_rows(job.tokens / "train.parquet"), precision
            )
        assert (ours.args.gradient_accumulation_steps == 1) is True
        ours.train()
        histories[used] = [h["loss"] for h in ours.state.log_history if "loss" in h]
    assert histories[True] == pytest.approx(histories[False], abs=0.05 if dropout else 1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"our kernels: attention by examples, fused adapters of 8 of 8 modules, \d+ small"),
        ({"peft": {"lora_dropout": 0.1}}, r"libraries' kernels: with dropout"),
        ({"peft": {"modules_to_save": ["lm_head"]}}, "the libraries' kernels: the output head is"),
        ({"training": {"label_smoothing_factor": 0.1}}, r"libraries' kernels: .*\(loss_type"),
        ({"training": {"neftune_noise_alpha": 5}}, "libraries' kernels: NEFTune's noise"),
    ],
)
def test_which_kernels_compute_is_told(job: MakeJob, changes: dict[str, Any], words: str) -> None:
    plain = {"lora_dropout": 0.0}
    task = job(**changes | {"peft": plain | changes.get("peft", {})})
    made = engine.build_trainer(
        task, engine.read_rows(task.tokens / "train.parquet"), loading.choose_precision(task.dtype)
    )
    assert re.search(words, made.kernels_said)


def test_neftunes_noise_is_scaled_by_the_rows_own_length(job: MakeJob) -> None:
    alpha = 5.0
    task = job(
        peft={"lora_dropout": 0.0},
        training={
            "neftune_noise_alpha": alpha,
            "gradient_accumulation_steps": 4,
            "max_steps": 1,
        },
    )
    ours = engine.build_trainer(
        task, engine.read_rows(task.tokens / "train.parquet"), loading.choose_precision("float32")
    )
    embed, seen = ours.model.get_input_embeddings(), []
    read: list[torch.Tensor] = []
    embed.register_forward_pre_hook(lambda _, given: read.append(given[0]))

    def look(_: Any, given: Any) -> None:
        noise = given[0].detach() - functional.embedding(read[-1], embed.weight)
        seen.append((read[-1].shape, float(noise.abs().max())))

    ours.model.get_base_model().model.layers[0].register_forward_pre_hook(look)
    ours.train()
    assert [rows for (rows, _), _ in seen] == [4] * 4
    assert max(length for (_, length), _ in seen) <= max(ours.row_lengths)
    for (_, length), noise in seen:
        assert noise * (length * embed.embedding_dim) ** 0.5 == pytest.approx(alpha, rel=0.01)


def test_a_model_that_calls_its_parts_otherwise_is_told_and_not_passed_over() -> None:
    said: list[str] = []
    assert proof.proved_kernels(adapted("Gemma2"), rows([30]), no_autocast, said.append) is None
    assert "libraries' kernels, more slowly than with ours: they do not fit" in said[0]
    assert "NotImplementedError: attention with dropout, soft caps" in said[0]


def test_kernels_that_compute_something_else_are_told_with_how_far_they_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = losses.sum_over_line
    monkeypatch.setattr(losses, "sum_over_line", lambda *a: real(*a) * 1.5)
    said: list[str] = []
    assert proof.proved_kernels(adapted("Phi3"), rows([30]), no_autocast, said.append) is None
    assert "by 50.00% and 50.00%; allowed are 0.01% and 0.10%" in said[0]
