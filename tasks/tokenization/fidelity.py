"""Compare what a row's trained tokens spell with the answer that the data has."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import Ids
from tasks.tokenization.rendering import Rendered, Turn
from tasks.tokenization.spans import Encoded
from tasks.tokenization.spelling import Spelling

_INDENTED_LINE = re.compile(r"\n[ \t]")


@dataclass(frozen=True)
class Verdict:
    """How one answer came through the template and the tokenizer. All false: exactly."""

    trimmed: bool = False
    """White space at its beginning or end is lost: the template trims it, or the special token before
    it swallows it, as Phi-3's do."""
    unindented: bool = False
    """That white space was the indentation of the first of several indented lines."""
    prefixed: bool = False
    """The template writes text of its own before it, such as an empty think block."""
    altered: bool = False
    """Its characters do not come back when its tokens are decoded."""


EXACT = Verdict()
ALTERED = Verdict(altered=True)


class Fidelity:
    """Judges the answers of one tokenizer."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._spelling = Spelling(chat)

    def verdicts(self, rows: Sequence[tuple[Rendered, Encoded]]) -> list[Verdict]:
        """One verdict for each trained answer of the rows, in order."""
        answers: list[str] = []
        carried: list[str] = []
        tokens: list[Ids] = []
        for rendered, encoded in rows:
            for turn, (start, stop) in zip(rendered.turns, encoded.spans, strict=True):
                written = rendered.written(turn)
                swallowed = turn.specials and self._swallowed(rendered, turn)
                answers.append(turn.answer)
                carried.append(written.lstrip() if swallowed else written)
                tokens.append(encoded.input_ids[start : stop - 1])
        same = self._spelling.same(tokens, carried)
        return [
            EXACT
            if equal and text == answer
            else _verdict(
                answer, text, altered=not equal and self._chat.decode(ids.tolist()) != text
            )
            for answer, text, ids, equal in zip(answers, carried, tokens, same, strict=True)
        ]

    def _swallowed(self, rendered: Rendered, turn: Turn) -> bool:
        """Whether the special token before the answer takes the white space at its beginning."""
        before = rendered.specials[turn.specials - 1]
        between = rendered.text[before.end() : turn.prompt]
        return before[0] in self._chat.stripping and not between.strip()


def _verdict(answer: str, carried: str, *, altered: bool) -> Verdict:
    if carried == answer:
        return ALTERED if altered else EXACT
    same = carried.strip() == answer.strip()
    return Verdict(
        trimmed=same,
        unindented=same and not carried[:1].isspace() and _indented(answer),
        prefixed=not same and carried.rstrip().endswith(answer.strip()),
        altered=altered,
    )


def _indented(answer: str) -> bool:
    space = answer[: len(answer) - len(answer.lstrip())]
    return bool(space.rpartition("\n")[2]) and bool(_INDENTED_LINE.search(answer.strip()))
