"""Small tokenizers of each family's kind, and real chat templates on top.

`phi`: characters with byte fallback, a space before each piece of text, special tokens that swallow
white space (Phi-3, Llama 2). `byte`: byte-level (Llama 3, Qwen, Phi-4, ChatML). `gemma`: characters
with byte fallback and nothing put before the text. `mistral`: Metaspace, a space before the first
piece alone.
"""

import hashlib
import json
import uuid
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.methods import RowKind
from tasks.store import Store
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.work import tokenize_dataset

Bases = Callable[..., Base]

PHI_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
BYTE_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_sep|>",
    "<|eom_id|>",
]
GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL_TOKENS = ["<s>", "</s>"]
# A few merges across what templates write and what answers begin with: the place where a prompt's
# tokens could melt into the answer's.
BYTE_MERGES = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("Ġ", "Ġ"), ("t", "h"), ("th", "e"), ("Ġ", "the")]


def piece_tokenizer() -> Tokenizer:
    """BPE over characters with byte fallback, as sentencepiece models are converted; no more yet."""
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *characters,
    ]
    vocabulary += ["th", "the", "▁the"]
    return Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)},
            [("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )


def phi_tokenizer() -> Tokenizer:
    """Special tokens swallow the white space after them."""
    core = piece_tokenizer()
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>")])
    core.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    core.add_special_tokens([AddedToken(PHI_TOKENS[0], normalized=False)])
    core.add_special_tokens([AddedToken(t, rstrip=True, normalized=False) for t in PHI_TOKENS[1:]])
    return core


def gemma_tokenizer() -> Tokenizer:
    """Nothing is put before the text; answers keep their white space."""
    core = piece_tokenizer()
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(t, normalized=False) for t in GEMMA_TOKENS])
    return core


def mistral_tokenizer() -> Tokenizer:
    """A space before the first piece of text alone; `[INST]` is ordinary text."""
    core = piece_tokenizer()
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.add_special_tokens([AddedToken(t, normalized=False) for t in MISTRAL_TOKENS])
    # As published: the tokenizer too would write a token for the beginning.
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return core


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE with Llama 3's way to split words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *("".join(merge) for merge in BYTE_MERGES)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, BYTE_MERGES))
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, normalized=False) for t in BYTE_TOKENS])
    core.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return core


KINDS = {
    "phi": phi_tokenizer,
    "byte": byte_tokenizer,
    "gemma": gemma_tokenizer,
    "mistral": mistral_tokenizer,
}


def shipped(name: str) -> str:
    """A chat template of the folder `templates`, else one that trl ships."""
    ours = Path(__file__).parent / "templates" / f"{name}.jinja"
    if ours.is_file():
        return ours.read_text(encoding="utf-8")
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def make_base(tmp_path: Path) -> Bases:
    """Builds a base folder without weights: `make_base(kind="phi", template="phi3", bos, eos)`.

    `template` is a name among trl's templates and those in `templates`, or the template itself.
    """

    def make(
        kind: str = "phi",
        template: str = "phi3",
        *,
        bos: str | None = "<s>",
        eos: str = "<|endoftext|>",
        context: int = 4096,
    ) -> Base:
        folder = tmp_path / "base"
        folder.mkdir(exist_ok=True)
        core = KINDS[kind]()
        core.save(str(folder / "tokenizer.json"))
        source = template if "{" in template else shipped(template)
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": bos}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        limits = {"model_type": "phi3", "max_position_embeddings": context}
        (folder / "config.json").write_text(json.dumps(limits))
        sha = hashlib.sha256(source.encode()).hexdigest()
        return Base(
            path=folder, model="../base", commit=None, weights_sha256="0", tokenizer_sha256=sha
        )

    return make


@pytest.fixture
def tokenize(tmp_path: Path) -> Callable[..., Tokens]:
    """Runs the stage on rows: `tokenize(base, train, test=None, **settings)`, anew each time."""

    def run(
        base: Base,
        train: list[dict[str, Any]],
        test: list[dict[str, Any]] | None = None,
        kind: RowKind = "conversations",
        **settings: Any,
    ) -> Tokens:
        path = tmp_path / "dataset"
        path.mkdir(exist_ok=True)
        sides = {"train": train, "test": test if test is not None else [plain_row()]}
        for side, rows in sides.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (path / f"{side}.jsonl").write_text(text, encoding="utf-8")
        dataset = Dataset(
            path=path,
            fingerprint=uuid.uuid4().hex,
            reused=False,
            seconds=0,
            digest="d" * 64,
            rows={side: len(rows) for side, rows in sides.items()},
        )
        return tokenize_dataset(
            Store(tmp_path / "store"),
            TokenizationSettings(**settings),
            dataset=dataset,
            base=base,
            kind=kind,
        )

    return run


def plain_row() -> dict[str, Any]:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    return {"id": "t", "group": "t", "messages": messages, "source": "t:1", "label": None}
