"""Render a model's chat template and encode the text, exactly as transformers does but without torch.

The environment of a template is the one that transformers documents for `apply_chat_template`
(utils/chat_template_utils.py): sandboxed Jinja with trimmed blocks, loop controls, a `tojson` that
does not escape HTML, `raise_exception`, `strftime_now`, and the tokenizer's special tokens by name.
A test compares the token ids with transformers' own.
"""

import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tasks.errors import BaseModelError

TODAY = datetime(2024, 7, 26)
"""What a template that asks for the date is told (Llama 3's own fallback).

The day of the run would give other bytes for the same fingerprint; at inference the date differs
from the training date anyway.
"""
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

Message = dict[str, str]


class Chat:
    """A base model's tokenizer with its chat template."""

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template.

        Raises: BaseModelError when one is missing or cannot be read.
        """
        self._folder = folder
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise BaseModelError(
                f"Cannot read {folder / 'tokenizer.json'}: {error}. "
                "Save the tokenizer again with transformers' save_pretrained."
            ) from error
        # A tokenizer.json may carry the truncation of its last user; it would cut answers silently.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        config = _json(folder / "tokenizer_config.json")
        legacy = _json(folder / "special_tokens_map.json")
        self.named_tokens = _named_tokens({**config, **legacy})
        self.source = _template_source(folder, config)
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise BaseModelError(
                f"The chat template of {folder} is no valid Jinja: {error}. Correct its chat_template.jinja."
            ) from error

    def render(self, messages: list[Message], *, generation_prompt: bool = False) -> str:
        """The conversation as text, with the next assistant turn opened if asked.

        Raises: jinja2.TemplateError when the template refuses the conversation.
        """
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **self.named_tokens,
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered texts. The template has written every special token already."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens visible."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens: those that the tokenizer marks so, and the named ones."""
        named = set(self.named_tokens.values())
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(
            number for number, token in added.items() if token.special or token.content in named
        )

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds special tokens in rendered text, the longest where several begin."""
        added = self.tokenizer.get_added_tokens_decoder()
        return _any_of(
            [token.content for number, token in added.items() if number in self.special_ids]
        )

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds texts that become a control token wherever they stand, in a user's message too.

        Special tokens, and other added tokens that the template writes itself.
        """
        added = self.tokenizer.get_added_tokens_decoder()
        return _any_of(
            [
                token.content
                for number, token in added.items()
                if not token.content.isspace()
                and (number in self.special_ids or token.content in self.source)
            ]
        )

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model accepts, by its config.json; None where it does not say."""
        config = _json(self._folder / "config.json")
        for section in (config, config.get("text_config") or {}):
            limit = section.get("max_position_embeddings")
            if isinstance(limit, int) and limit > 0:
                return limit
        return None


class _GenerationBlock(jinja2.ext.Extension):
    """Templates for training mark answers with `{% generation %}`; the mark renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _any_of(texts: list[str]) -> re.Pattern[str]:
    # An empty alternation would match everywhere, `(?!)` matches nowhere.
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        # Several templates by name, as older tokenizers for tools have them.
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if not isinstance(template, str) or not template.strip():
        raise BaseModelError(
            f"The base model at {folder} has no chat template. Choose its instruction-tuned variant, "
            "or put a chat_template.jinja into a local copy of the model and name that folder."
        )
    return template


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{path} is not JSON: {error}. Download the model again.") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} holds no JSON object. Download the model again.")
    return value
