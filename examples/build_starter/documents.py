"""Turn corpus items into pretraining documents, none of which is a chat turn."""

import random
from collections.abc import Iterator

from corpus import Item, first_paragraph

CODE_CHARACTERS = (250, 400, 600)
MIN_WORDS, MAX_WORDS = 3, 80


def cut(text: str, budget: int) -> str:
    """Return the text's first lines within a budget of characters, marking what was cut."""
    if len(text) <= budget:
        return text
    return text[:budget].rpartition("\n")[0] + "\n    ..."


def indented(text: str) -> str:
    """Return the text indented as the inside of a definition."""
    return "\n".join("    " + line if line.strip() else "" for line in text.splitlines())


def code_first(item: Item, budget: int) -> tuple[str, str]:
    """Return code, and what it does as a comment of one line, which needs no closing mark."""
    code = cut(f"{item.signature}\n{item.body}".strip(), budget)
    return code + "\n#", " " + first_paragraph(item.doc)


def natural(item: Item, budget: int) -> str:
    """Return a definition in its natural order: signature, documentation, body."""
    doc = indented(f'"""{item.doc}\n"""' if "\n" in item.doc else f'"""{item.doc}"""')
    return cut(f"{item.signature}\n{doc}\n{item.body}".strip(), budget)


def documents(items: list[Item], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield each document as its context, which matters less, and the text to learn."""
    for item in items:
        words = len(first_paragraph(item.doc).split())
        if MIN_WORDS <= words <= MAX_WORDS:
            yield code_first(item, rng.choice(CODE_CHARACTERS))
        if "\n\n" in item.doc:
            yield "", item.doc
        if rng.random() < 0.1:
            yield "", natural(item, 1_200)
