"""Train a small tokenizer of Phi-3's kind: BPE with byte fallback, without a pre-tokenizer."""

import json
import random
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
BASE = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
# The same tokens in the same order as in Phi-3-mini.
CHAT = [
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
]
# Indentation, words with the space before them, single digits, marks. Line breaks stay out and
# become bytes, as in Phi-3.
WORDS = Regex(r"▁{2,}|▁?\p{L}+|\p{N}|▁?[^\s▁\p{L}\p{N}]+|▁|\s")
ALPHABET = 160


def merges_of(texts: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces and the merge rules of a BPE trained within words only."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(BASE) - len(CHAT) + 2,
        limit_alphabet=ALPHABET,
        max_token_length=20,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [piece for piece in model["vocab"] if piece not in "\n\t"]
    return pieces, [tuple(merge) for merge in model["merges"]]


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer with Phi-3's normalisation, byte fallback and special tokens."""
    pieces, merges = merges_of(texts)
    pieces = pieces[: VOCABULARY - len(BASE) - len(CHAT)]
    known = set(pieces)
    merges = [merge for merge in merges if "".join(merge) in known]
    vocabulary = {piece: number for number, piece in enumerate(BASE + pieces)}
    core = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
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
    core.add_special_tokens([AddedToken(token, normalized=False) for token in BASE[:2]])
    # `rstrip` swallows the white space after the token, as in Phi-3.
    core.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    core.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    core.add_special_tokens(
        [AddedToken(token, rstrip=True, normalized=False) for token in CHAT[1:]]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    # Byte for byte the template that trl recognises as Phi-3's.
    tokenizer.chat_template = (files("trl") / "chat_templates" / "phi3.jinja").read_text()
    return tokenizer


def load_or_train(texts: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Return the folder's tokenizer, training and saving it first where there is none.

    An existing one stays, because ties between merges fall differently in every training.
    """
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = build(random.Random(0).sample(texts, min(len(texts), 120_000)))
    tokenizer.save_pretrained(folder)
    return tokenizer
