"""Encode text in which a person typed a control token's text, so that it stays ordinary text.

MARK breaks every such text. To the tokenizer it is a special token of its own, at which text is split;
its id is taken out again, and what stood on both sides are ordinary tokens.
"""

from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import MARK, unmarked
from tasks.tokenization.encoder import Ids
from tasks.tokenization.rendering import Unfit


class Plain:
    """Token ids of marked texts."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def encode(self, text: str) -> Ids:
        """Ids of `text` without its marks, int32.

        Raises: Unfit when a control token acts nevertheless, or when the words do not come back.
        """
        ids = self.ids(text)
        written = [match[0] for match in self._chat.control_pattern.finditer(text)]
        acting = [name for token in ids.tolist() if (name := self._controls.get(token))]
        if acting != written:
            raise Unfit("this tokenizer cannot write the text of a control token as ordinary text")
        # A tokenizer that puts a space before each piece of text puts one behind the mark.
        if _words(self._chat.decode(ids.tolist())) != _words(unmarked(text)):
            raise Unfit(
                "the text of a control token does not come back when its tokens are decoded"
            )
        return ids

    def ids(self, text: str) -> Ids:
        """Ids of `text` without its marks, unchecked."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([token for token in encoded if token != self._mark], np.int32)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = Tokenizer.from_str(self._chat.tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(MARK, normalized=False)])
        return tokenizer

    @cached_property
    def _mark(self) -> int:
        return int(self._tokenizer.token_to_id(MARK))

    @cached_property
    def _controls(self) -> dict[int, str]:
        added = self._chat.tokenizer.get_added_tokens_decoder()
        pattern = self._chat.control_pattern
        return {n: token.content for n, token in added.items() if pattern.fullmatch(token.content)}


def _words(text: str) -> str:
    return "".join(text.split())
