"""Embedding similarity by a small encoder that is made here, against the same pooling written out."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.evaluation import worker
from tasks.evaluation.job import AnswerJob
from tasks.evaluation.meaning import Meaning

WORDS = ["[UNK]", "[PAD]", "open", "close", "the", "file", "a", "queue", "of", "items"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder


def test_similarity_is_the_cosine_of_mean_pooled_vectors(encoder: Path) -> None:
    answers = ["open the file", "a queue", "close", "open open open open open open"]
    references = ["open the file", "close the file of items", "a queue of items", "close"]
    found = Meaning(encoder, "cpu").similarity(answers, references)
    model = BertModel.from_pretrained(encoder).eval()

    def vector(text: str) -> Any:
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.inference_mode():
            return model(ids).last_hidden_state[0].mean(dim=0)

    expected = [
        max(0.0, float(torch.cosine_similarity(vector(a), vector(r), dim=0)))
        for a, r in zip(answers, references, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(1.0, abs=1e-6)


def test_empty_texts_score_zero_and_long_ones_are_cut(encoder: Path) -> None:
    found = Meaning(encoder, "cpu").similarity(["", "open", "open " * 500], ["open", " ", "open"])
    assert found[:2] == [0.0, 0.0]
    assert 0 <= found[2] <= 1


def test_references_are_embedded_once_for_all_models(encoder: Path) -> None:
    meaning, fresh = Meaning(encoder, "cpu"), Meaning(encoder, "cpu")
    embedded: list[int] = []
    meaning._model.register_forward_hook(lambda *seen: embedded.append(len(seen[2][0])))
    references = ["open the file", "a queue"]
    first = meaning.similarity(["open", "queue"], references)
    second = meaning.similarity(["close", "items"], list(references))
    assert sum(embedded) == 6
    assert first == fresh.similarity(["open", "queue"], references)
    other = ["close", "items"]
    assert meaning.similarity(other, other) == pytest.approx([1.0, 1.0])
    assert second != meaning.similarity(["close", "items"], ["a queue", "open the file"])


def test_the_worker_keeps_every_models_similarity(
    encoder: Path, tmp_path: Path, chat_tokens: Tokens, tiny: Base, stops: list[int]
) -> None:
    worker.answer(
        AnswerJob(
            base=tiny.path,
            adapters={},
            tokenizer=tiny.path / "tokenizer.json",
            rows=chat_tokens.path / "test.parquet",
            stop_tokens=stops,
            max_new_tokens=3,
            batch_size=4,
            dtype="auto",
            quantization="none",
            predictions=tmp_path / "predictions.parquet",
            result=tmp_path / "answers.json",
            embedding_model=encoder,
        )
    )
    table = pq.read_table(tmp_path / "predictions.parquet")
    scores = table["base_similarity"].to_pylist()
    assert len(scores) == 9
    assert all(0 <= score <= 1 for score in scores)
