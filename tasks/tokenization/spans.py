"""Which tokens of a conversation carry the loss: every trained answer with the token that ends its turn.

Each prompt must be a prefix of the row token for token, not as text alone: white space at the
beginning of an answer can melt with the template's into one token that no prompt ends with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import Encoder, Ids
from tasks.tokenization.marked import Plain
from tasks.tokenization.rendering import Rendered, Turn, Unfit

UNTRAINED = -100
"""The label that PyTorch's cross entropy ignores."""
KEPT_TAILS = 10_000
KEPT_TAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids."""

    input_ids: Ids
    spans: tuple[tuple[int, int], ...]
    """Positions `[start, stop)` of the trained answers, each with the token that ends its turn."""
    everything: bool = False
    """Whether the tokens between the spans are trained too."""

    @property
    def labels(self) -> Ids:
        """`input_ids` where trained, `UNTRAINED` elsewhere; same length."""
        labels = np.full(len(self.input_ids), UNTRAINED, np.int32)
        for start, stop in self.trained_spans:
            labels[start:stop] = self.input_ids[start:stop]
        return labels

    @property
    def trained_spans(self) -> tuple[tuple[int, int], ...]:
        """Positions that carry loss."""
        return ((0, len(self.input_ids)),) if self.everything else self.spans

    @property
    def trained_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(stop - start for start, stop in self.trained_spans)

    @property
    def prompt_length(self) -> int:
        """Tokens before the last answer: the generation prompt."""
        return self.spans[-1][0]


class SpanEncoder:
    """Encodes rendered conversations and finds their trained tokens."""

    def __init__(self, chat: Chat, encoder: Encoder) -> None:
        self._chat = chat
        self._encoder = encoder
        self._plain = Plain(chat)
        self._special = np.zeros(max(chat.special_ids, default=0) + 1, np.bool_)
        self._special[list(chat.special_ids)] = True
        # It stands for characters that the tokenizer does not know, and not for its own text.
        if (unknown := chat.special_tokens.get(chat.named_tokens.get("unk_token", ""))) is not None:
            self._special[unknown] = False
        self._tails: dict[str, list[int]] = {}

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded | Unfit]:
        """Token ids and trained spans; a row that cannot be trained on gives an Unfit in its place.

        Raises: EncodersDisagree.
        """
        ordinary = [row for row in rows if not row.marked]
        tails = {tail for row in ordinary for turn in row.turns if (tail := self._tail(row, turn))}
        new = [tail for tail in tails if tail not in self._tails]
        encoded = self._encoder.encode([row.text for row in ordinary] + new)
        fresh = {
            tail: ids.tolist() for tail, ids in zip(new, encoded[len(ordinary) :], strict=True)
        }
        known = {**self._tails, **fresh} if fresh else self._tails
        places = iter(self._special_places(encoded[: len(ordinary)]))
        ids = iter(encoded)
        results = [
            self._marked(row) if row.marked else self._row(row, next(ids), next(places), known)
            for row in rows
        ]
        short = [tail for tail in new if len(tail) <= KEPT_TAIL_CHARACTERS]
        self._tails.update((tail, known[tail]) for tail in short[: KEPT_TAILS - len(self._tails)])
        return results

    def _tail(self, row: Rendered, turn: Turn) -> str:
        """The prompt from its last special token on, the whole of it where it has none.

        Before a special token the text is tokenized apart, so the tokens before it are those of the
        row already; what may melt into the answer is behind it. A tail is the same in nearly all
        rows, so prompts cost nothing to compare.
        """
        split = turn.specials and self._chat.specials_split
        start = row.specials[turn.specials - 1].start() if split else 0
        return row.text[start : turn.prompt]

    def _marked(self, row: Rendered) -> Encoded | Unfit:
        try:
            ids = self._plain.encode(row.text)
            tails = {
                tail: self._plain.ids(tail).tolist()
                for tail in {self._tail(row, turn) for turn in row.turns}
            }
        except Unfit as problem:
            return problem
        return self._row(row, ids, self._special_places([ids])[0], tails)

    def _row(
        self, row: Rendered, ids: Ids, places: list[int], tails: dict[str, list[int]]
    ) -> Encoded | Unfit:
        try:
            self._require_specials(row, ids, places)
            spans = tuple(self._span(row, turn, ids, places, tails) for turn in row.turns)
        except Unfit as problem:
            return problem
        return Encoded(ids, spans, row.everything)

    def _special_places(self, rows: Sequence[Ids]) -> list[list[int]]:
        """Positions of the special tokens in each row."""
        if not rows:
            return []
        flat = np.concatenate(rows)
        known = flat < len(self._special)
        places = np.flatnonzero(self._special[np.where(known, flat, 0)] & known)
        ends = np.cumsum([len(ids) for ids in rows])
        cuts = np.searchsorted(places, ends).tolist()
        starts = [0, *ends.tolist()]
        found = places.tolist()
        return [
            [place - start for place in found[first:last]]
            for first, last, start in zip([0, *cuts], cuts, starts, strict=False)
        ]

    def _require_specials(self, row: Rendered, ids: Ids, places: list[int]) -> None:
        wanted = [self._chat.special_tokens[found[0]] for found in row.specials]
        if ids[places].tolist() != wanted:
            raise Unfit(
                "the tokenizer does not read the special tokens of the rendered text as one token "
                f"each: it gives {len(places)} of them instead of {len(wanted)}, or others"
            )
        if len(ids) > 1 and ids[0] == ids[1] == self._chat.bos_id:
            raise Unfit("the template writes the token for the beginning twice")

    def _span(
        self,
        row: Rendered,
        turn: Turn,
        ids: Ids,
        places: list[int],
        tails: dict[str, list[int]],
    ) -> tuple[int, int]:
        split = turn.specials and self._chat.specials_split
        begin = places[turn.specials - 1] if split else 0
        text = self._tail(row, turn)
        tail = tails[text] if text else []
        start = begin + len(tail)
        if ids[begin:start].tolist() != tail:
            raise Unfit(
                "the tokens of the prompt are not the first tokens of the row: the answer "
                f"begins with {turn.answer[:12]!r}, which melts into the template's text. "
                "Remove the white space at the beginning of the answer"
            )
        return start, places[turn.last] + 1
