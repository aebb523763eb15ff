"""Render a model's chat template and know its special tokens, exactly as transformers does but without torch.

A test compares the token ids with transformers' own.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from tasks.errors import BaseModelError
from tasks.tokenization.template import environment

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

Message = dict[str, Any]


class Chat:
    """A base model's tokenizer with its chat template."""

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template.

        Raises: BaseModelError when one is missing or cannot be read.
        """
        self.folder = folder
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
        self.config = config = _json(folder / "tokenizer_config.json")
        legacy = _json(folder / "special_tokens_map.json")
        self.named_tokens = _named_tokens({**config, **legacy})
        self.source = _template_source(folder, config)
        try:
            self._template = environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise BaseModelError(
                f"The chat template of {folder} is no valid Jinja: {error}. Correct its chat_template.jinja."
            ) from error
        # What every rendering sees. Jinja would put it together anew for each.
        self._shared = {
            **self._template.globals,
            "documents": None,
            **self.named_tokens,
        }

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[Any] | None = None,
        generation_prompt: bool = False,
    ) -> str:
        """The conversation as text, with the next assistant turn opened if asked.

        Raises: jinja2.TemplateError when the template refuses the conversation.
        """
        context = self._template.new_context(
            {
                **self._shared,
                "messages": messages,
                "tools": tools,
                "add_generation_prompt": generation_prompt,
            },
            shared=True,
        )
        return "".join(self._template.root_render_func(context))

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
        return frozenset(
            n for n, token in self._added.items() if token.special or token.content in named
        )

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of every special token."""
        return {t.content: n for n, t in self._added.items() if n in self.special_ids}

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds special tokens in rendered text, the longest where several begin."""
        return _any_of(list(self.special_tokens))

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds texts that become a control token wherever they stand, in a user's message too.

        Special tokens, and other added tokens that the template writes itself.
        """
        return _any_of(
            [
                token.content
                for number, token in self._added.items()
                if not token.content.isspace()
                and (number in self.special_ids or token.content in self.source)
            ]
        )

    @cached_property
    def specials_split(self) -> bool:
        """Whether text on both sides of a special token is always tokenized apart.

        It is when the token is found in the raw text, before anything is normalised.
        """
        tokens = [self._added[number] for number in self.special_ids]
        return not any(token.normalized or token.single_word for token in tokens)

    @cached_property
    def stripping(self) -> frozenset[str]:
        """Special tokens that swallow the white space after them, as Phi-3's do."""
        return frozenset(self._added[n].content for n in self.special_ids if self._added[n].rstrip)

    @cached_property
    def stop_tokens(self) -> frozenset[str]:
        """Special tokens at which generation stops, by generation_config.json and `eos_token`."""
        stops = _json(self.folder / "generation_config.json").get("eos_token_id")
        ids = stops if isinstance(stops, list) else [stops]
        named = {self.named_tokens.get("eos_token")}
        return frozenset(t for t, n in self.special_tokens.items() if n in ids or t in named)

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the token for the beginning, where the tokenizer names one."""
        name = self.named_tokens.get("bos_token")
        return None if name is None else self.tokenizer.token_to_id(name)

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model accepts, by its config.json; None where it does not say."""
        config = _json(self.folder / "config.json")
        for section in (config, config.get("text_config") or {}):
            limit = section.get("max_position_embeddings")
            if isinstance(limit, int) and limit > 0:
                return limit
        return None

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self.tokenizer.get_added_tokens_decoder())


def _any_of(texts: list[str]) -> re.Pattern[str]:
    # An empty alternation would match everywhere, `(?!)` matches nowhere.
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


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
