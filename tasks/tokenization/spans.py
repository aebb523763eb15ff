"""Which tokens of a conversation carry the loss: every trained answer with the token that ends its turn.

Each prompt must be a prefix of the row token for token, not as text alone: white space at the
beginning of an answer can melt with the template's into one token that no prompt ends with.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import Encoder, Ids
from tasks.tokenization.marked import Plain
from tasks.tokenization.rendering import Rendered, Turn, Unfit

UNTRAINED = -100
"""The label that PyTorch's cross entropy ignores."""
KEPT_TAILS = 10_000
KEPT_TAIL_CHARACTERS = 200


class Melted(Unfit):
    """The white space before an answer makes one token with the template's."""


class Encoded(NamedTuple):
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
        # One more than the largest: what lies beyond is looked up there.
        self._special = np.zeros(max(chat.special_ids, default=0) + 2, np.bool_)
        self._special[list(chat.special_ids)] = True
        # It stands for characters that the tokenizer does not know, and not for its own text.
        if (unknown := chat.special_tokens.get(chat.named_tokens.get("unk_token", ""))) is not None:
            self._special[unknown] = False
        self._twice_bos = None if chat.bos_id is None else 2 * _raw([chat.bos_id])
        self._tails: dict[str, bytes] = {"": b""}

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded | Unfit]:
        """Token ids and trained spans; a row that cannot be trained on gives an Unfit in its place.

        Raises: EncodersDisagree.
        """
        ordinary = [row for row in rows if not row.marked]
        wanted = {self._tail(row, turn) for row in ordinary for turn in row.turns}
        new = [tail for tail in wanted if tail not in self._tails]
        batch = self._encoder.encode([row.text for row in ordinary] + new)
        encoded = list(batch)
        fresh = {
            tail: ids.tobytes() for tail, ids in zip(new, encoded[len(ordinary) :], strict=True)
        }
        known = {**self._tails, **fresh} if fresh else self._tails
        stop = batch.bounds[len(ordinary)]
        found = iter(self._found(ordinary, encoded[: len(ordinary)], batch.flat[:stop], known))
        results = [self._marked(row) if row.marked else next(found) for row in rows]
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
                tail: self._plain.ids(tail).tobytes() if tail else b""
                for tail in {self._tail(row, turn) for turn in row.turns}
            }
        except Unfit as problem:
            return problem
        return self._found([row], [ids], ids, tails)[0]

    def _found(
        self, rows: Sequence[Rendered], encoded: Sequence[Ids], flat: Ids, tails: dict[str, bytes]
    ) -> list[Encoded | Unfit]:
        """Trained spans of rows whose ids, one row's behind the other's, are `flat`."""
        tokens = self._chat.special_tokens
        wanted = [[tokens[found[0]] for found in row.specials] for row in rows]
        places = np.flatnonzero(self._special.take(flat, mode="clip"))
        ends = list(accumulate(map(len, encoded)))
        firsts = [0, *np.searchsorted(places, ends).tolist()]
        # One look at all rows together says in nearly all cases what a look at each would say.
        as_written = firsts == list(accumulate(map(len, wanted), initial=0)) and np.array_equal(
            flat[places], list(chain.from_iterable(wanted))
        )
        raw = flat.tobytes()
        positions = places.tolist()
        results: list[Encoded | Unfit] = []
        start = 0
        for k, row in enumerate(rows):
            own = positions[firsts[k] : firsts[k + 1]]
            try:
                if not as_written:
                    _require_specials(flat[own].tolist(), wanted[k])
                if self._twice_bos and raw.startswith(self._twice_bos, 4 * start, 4 * ends[k]):
                    raise Unfit("the template writes the token for the beginning twice")
                spans = tuple(
                    self._span(row, turn, raw, start, ends[k], own, tails) for turn in row.turns
                )
                results.append(Encoded(encoded[k], spans, row.everything))
            except Unfit as problem:
                results.append(problem)
            start = ends[k]
        return results

    def _span(
        self,
        row: Rendered,
        turn: Turn,
        raw: bytes,
        first: int,
        end: int,
        places: list[int],
        tails: dict[str, bytes],
    ) -> tuple[int, int]:
        """The trained tokens of a turn, counted from the row's first; the row is `raw[4 * first : 4 * end]`."""
        split = turn.specials and self._chat.specials_split
        begin = places[turn.specials - 1] if split else first
        tail = tails[self._tail(row, turn)]
        if not raw.startswith(tail, 4 * begin, 4 * end):
            raise Melted(
                "the tokens of the prompt are not the first tokens of the row: the answer "
                f"begins with {turn.answer[:12]!r}, which melts into the template's text. "
                "Remove the white space at the beginning of the answer"
            )
        return begin + len(tail) // 4 - first, places[turn.last] + 1 - first


def _require_specials(found: list[int], wanted: list[int]) -> None:
    if found != wanted:
        raise Unfit(
            "the tokenizer does not read the special tokens of the rendered text as one token "
            f"each: it gives {len(found)} of them instead of {len(wanted)}, or others"
        )


def _raw(ids: list[int]) -> bytes:
    """As a row's ids lie in memory: looking for bytes is many times faster than making lists."""
    return np.array(ids, np.int32).tobytes()
