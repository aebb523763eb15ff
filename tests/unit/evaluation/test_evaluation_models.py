"""The worker that measures loss and generates, on real tiny models."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.artifacts import Adapter, Tokens
from tasks.errors import UserError
from tasks.evaluation import answering, models
from tasks.evaluation.batches import batches
from tasks.evaluation.job import AnswerJob

Rows = dict[str, list[Any]]


@pytest.fixture(scope="module")
def rows(chat_tokens: Tokens) -> Rows:
    return pq.read_table(chat_tokens.path / "test.parquet").to_pydict()


@pytest.fixture(scope="module")
def prompts(rows: Rows) -> list[list[int]]:
    pairs = zip(rows["input_ids"], rows["prompt_length"], strict=True)
    return [ids[:length] for ids, length in pairs]


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def answers_of(model: Any, prompts: list[list[int]], stops: list[int], size: int) -> Any:
    return answering.generate(model, prompts, [24] * len(prompts), size, stops, "base")


def test_greedy_answers_do_not_depend_on_the_batch_in_fp32(
    model: Any, prompts: list[list[int]], stops: list[int]
) -> None:
    alone = answers_of(model, prompts, stops, 1)
    together = answers_of(model, prompts, stops, 8)
    assert alone == together
    assert len({tuple(ids) for ids, _ in alone}) > 1


def test_greedy_answers_are_the_models_first_choices_token_by_token(
    model: Any, prompts: list[list[int]], stops: list[int]
) -> None:
    (ids, _), *_ = answers_of(model, prompts[:1], stops, 1)
    text = list(prompts[0])
    for token in ids:
        with torch.inference_mode():
            assert int(model(torch.tensor([text])).logits[0, -1].argmax()) == token
        text.append(token)


def test_an_answer_ends_at_the_first_of_either_stop_token(
    model: Any, prompts: list[list[int]], stops: list[int]
) -> None:
    (free, stopped), *_ = answers_of(model, prompts[:1], stops, 1)
    assert not stopped
    assert len(free) == 24
    token = free[3]
    place = free.index(token)
    for stop in ([token, stops[0]], [stops[0], token]):
        (ids, stopped), *_ = answers_of(model, prompts[:1], stop, 1)
        assert stopped
        assert ids == free[:place]


def test_a_token_equal_to_the_padding_id_in_a_prompt_is_no_padding(
    model: Any, prompts: list[list[int]], stops: list[int]
) -> None:
    # Padding is written with the first stop token, which also ends every user turn.
    assert stops[0] in prompts[0] or stops[1] in prompts[0]
    longest = max(prompts, key=len)
    alone = answers_of(model, prompts[:1], stops, 1)[0]
    assert answers_of(model, [prompts[0], longest], stops, 2)[0] == alone


def test_a_row_near_the_end_of_the_context_keeps_only_its_room(
    model: Any, prompts: list[list[int]], stops: list[int]
) -> None:
    answers = answering.generate(model, prompts[:2], [5, 24], 2, stops, "base")
    assert [len(ids) for ids, _ in answers] == [5, 24]


def test_the_loss_equals_the_models_own_and_does_not_depend_on_padding(
    model: Any, rows: Rows, stops: list[int]
) -> None:
    alone, alone_correct = answering.measure(
        model, rows["input_ids"], rows["labels"], 1, stops[0], "base"
    )
    together, correct = answering.measure(
        model, rows["input_ids"], rows["labels"], 8, stops[0], "base"
    )
    assert together == pytest.approx(alone, rel=1e-5)
    assert correct == alone_correct
    for number, (ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        trained = sum(label != -100 for label in labels)
        with torch.inference_mode():
            output = model(torch.tensor([ids]), labels=torch.tensor([labels]))
        assert alone[number] / trained == pytest.approx(float(output.loss), rel=1e-5)


def test_the_loss_of_many_logits_is_measured_in_smaller_batches(
    model: Any, rows: Rows, stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answering.measure(model, rows["input_ids"], rows["labels"], 8, stops[0], "base")
    monkeypatch.setattr(answering, "LOGITS_AT_ONCE", 1)
    small = answering.measure(model, rows["input_ids"], rows["labels"], 8, stops[0], "base")
    assert small[0] == pytest.approx(whole[0], rel=1e-5)


def test_an_adapter_changes_the_answers_and_leaves_the_base_as_it_was(
    model: Any,
    prompts: list[list[int]],
    rows: Rows,
    stops: list[int],
    challenger: Adapter,
    champion: Adapter,
) -> None:
    def seen(worn: Any) -> Any:
        loss, _ = answering.measure(worn, rows["input_ids"], rows["labels"], 4, stops[0], "base")
        return answers_of(worn, prompts, stops, 4), loss

    before = seen(model)
    found = {}
    for name, adapter in (("champion", champion), ("challenger", challenger)):
        with models.wearing(model, name, adapter.folder) as worn:
            found[name] = seen(worn)
    assert found["champion"] != before
    assert found["challenger"] != before
    assert found["champion"] != found["challenger"]
    assert seen(model) == before
    with models.wearing(model, "champion", champion.folder) as worn:
        assert seen(worn) == found["champion"]


def test_an_adapter_of_another_shape_is_refused_in_words(
    tiny_base: Path, challenger: Adapter
) -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config.from_pretrained(tiny_base)
    config.hidden_size = 16
    other = Phi3ForCausalLM(config)
    with pytest.raises(UserError, match="does not fit the base model"):
        models.wearing(other, "champion", challenger.folder).__enter__()


def test_an_adapter_with_a_missing_weight_is_refused_in_words(
    model: Any, tmp_path: Path, make_adapter: Callable[[int, int], Adapter]
) -> None:
    from safetensors.torch import load_file, save_file

    path = make_adapter(3, 2).folder / "adapter_model.safetensors"
    weights = load_file(path)
    lost = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lost}, path)
    with pytest.raises(UserError, match="1 weights differ in name"):
        models.wearing(model, "challenger", path.parent).__enter__()


def test_batches_hold_every_row_once_and_pad_on_the_left() -> None:
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    made = list(batches(rows, 3, padding=0))
    assert sorted(row for batch in made for row in batch.rows) == [0, 1, 2, 3]
    first = made[0]
    assert first.input_ids == [[0, 0, 4], [0, 5, 6], [1, 2, 3]]
    assert first.attention_mask == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert first.position_ids == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]


def test_the_base_brings_no_generation_settings_of_its_own(
    tiny_base: Path, tmp_path: Path, prompts: list[list[int]], stops: list[int]
) -> None:
    folder = tmp_path / "penalised"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(config))
    job = job_for(folder, stop_tokens=stops)
    plain = models.load_base(job.model_copy(update={"base": tiny_base}), "cpu", torch.float32)
    penalised = models.load_base(job, "cpu", torch.float32)
    expected = answers_of(plain, prompts, stops, 4)
    assert answers_of(penalised, prompts, stops, 4) == expected


def job_for(base: Path, **changed: Any) -> AnswerJob:
    values: dict[str, Any] = {
        "base": base,
        "adapters": {},
        "tokenizer": base / "tokenizer.json",
        "rows": base,
        "stop_tokens": [1],
        "max_new_tokens": 4,
        "batch_size": 4,
        "dtype": "auto",
        "quantization": "none",
        "predictions": base,
        "result": base,
    }
    return AnswerJob(**{**values, **changed})


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_on_a_cpu_the_arithmetic_is_fp32_unless_the_recipe_says_otherwise(tiny_base: Path) -> None:
    assert models.arithmetic(job_for(tiny_base))[:2] == ("cpu", torch.float32)
    device, dtype, why = models.arithmetic(job_for(tiny_base, dtype="bfloat16"))
    assert (device, dtype) == ("cpu", torch.bfloat16)
    assert "evaluation.dtype" in why


@pytest.mark.skipif(
    find_spec("bitsandbytes") is not None, reason="is about machines without bitsandbytes"
)
def test_quantization_without_its_library_is_refused_with_the_way_out(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"loraline\[gpu\]"):
        models.load_base(job_for(tiny_base, quantization="nf4"), "cpu", torch.float32)
