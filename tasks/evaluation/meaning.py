"""How near answers are to their references in meaning: cosines of a sentence-embedding model's vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

BATCH = 32


class Meaning:
    """A local encoder whose token vectors are averaged, as sentence-transformers' mean pooling does."""

    def __init__(self, folder: Path, device: str) -> None:
        options = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._model: Any = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **options
        )
        self._model.to(device).eval()
        self._device = device
        self._references: tuple[str, ...] = ()
        self._vectors = torch.empty(0)
        """Of these references: every model's answers are compared with the same ones."""

    def similarity(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """Cosine of each pair on 0-1; a negative one counts as 0, and so does an empty text."""
        if self._references != tuple(references):
            self._references, self._vectors = tuple(references), self._embed(references)
        mine = self._embed(answers)
        cosines = torch.nn.functional.cosine_similarity(mine, self._vectors).clamp(0, 1).tolist()
        return [
            float(cosine) if answer.strip() and reference.strip() else 0.0
            for cosine, answer, reference in zip(cosines, answers, references, strict=True)
        ]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        # One token at least: an empty text has no mean.
        safe = [text if text.strip() else "-" for text in texts]
        order = sorted(range(len(safe)), key=lambda row: -len(safe[row]))
        found: list[Any] = [None] * len(safe)
        limit = getattr(self._model.config, "max_position_embeddings", None) or 512
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self._tokenizer(
                [safe[row] for row in rows],
                padding=True,
                truncation=True,
                # RoBERTa's positions begin two places later.
                max_length=max(8, limit - 2),
                return_tensors="pt",
            ).to(self._device)
            states = self._model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states.dtype)
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            for row, vector in zip(rows, means.cpu(), strict=True):
                found[row] = vector
        return torch.stack(found)
