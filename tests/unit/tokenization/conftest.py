"""Two small tokenizers, of Phi-3's kind and of Llama 3's kind, and real chat templates on top."""

import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tasks.base import Base

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
]
# A few merges across what templates write and what answers begin with: the place where a prompt's
# tokens could melt into the answer's.
BYTE_MERGES = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("Ġ", "Ġ"), ("t", "h"), ("th", "e"), ("Ġ", "the")]


def phi_tokenizer() -> Tokenizer:
    """BPE over characters with byte fallback; special tokens swallow the white space after them."""
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
    core = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)},
            [("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
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


def shipped(name: str) -> str:
    """A chat template that trl ships."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def make_base(tmp_path: Path) -> Bases:
    """Builds a base folder without weights: `make_base(kind="phi", template="phi3", bos, eos)`.

    `template` is a name among trl's templates, or the template itself.
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
        core = phi_tokenizer() if kind == "phi" else byte_tokenizer()
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
