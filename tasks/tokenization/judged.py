"""Answers with a verdict as token rows, for KTO: a good or a bad answer each, or both of a pair."""

from typing import Any

from tasks.tokenization.chat import Chat
from tasks.tokenization.drops import Drops
from tasks.tokenization.encoder import Encoder
from tasks.tokenization.kinds import kind_of
from tasks.tokenization.pairs import PairTokenizer
from tasks.tokenization.rows import RowTokenizer, TokenRow
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import Encoded


class JudgedTokenizer:
    """Makes token rows of answers that were judged one by one, and of preference pairs among them."""

    def __init__(self, chat: Chat, encoder: Encoder, settings: TokenizationSettings) -> None:
        last = settings.model_copy(update={"train_on": "last_assistant"})
        self._rows = RowTokenizer(chat, encoder, last)
        self._pairs = PairTokenizer(chat, encoder, settings)

    def tokenize(self, rows: list[dict[str, Any]], drops: Drops) -> list[TokenRow]:
        """Token rows in the order of `rows`: of a judged row with `desirable`, of a pair with `rejected`.

        Rows are counted in `drops` with what became of them.

        Raises: EncodersDisagree.
        """
        judged = [row for row in rows if kind_of(row) == "judged"]
        verdicts = {row["id"]: row["desirable"] for row in judged}
        found = [
            _with_verdict(one, verdicts[one.id])
            for one in self._rows.tokenize([_unjudged(row) for row in judged], drops)
        ]
        found += self._pairs.tokenize([row for row in rows if kind_of(row) != "judged"], drops)
        places = {row["id"]: at for at, row in enumerate(rows)}
        return sorted(found, key=lambda row: places[row.id])


def _unjudged(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a conversation: bad answers are learned from too, and weights are for `sft`."""
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"]]
    return {**row, "messages": messages, "desirable": None}


def _with_verdict(row: TokenRow, desirable: bool) -> TokenRow:
    # What a template writes behind the end of a turn is nobody's answer.
    start, stop = row.encoded.spans[-1]
    encoded = Encoded(row.encoded.input_ids[:stop], ((start, stop),))
    return row._replace(encoded=encoded, desirable=desirable)
