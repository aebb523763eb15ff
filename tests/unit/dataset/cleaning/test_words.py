"""Words are hashed by arithmetic on whole arrays; what a word is, a regular expression says."""

import re

import pytest

from tasks.dataset.cleaning.words import hashed_words

WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
TEXTS = [
    "hello world, foo_bar: 1.5",
    "",
    "请写一封信 abc客户 x",
    " foo_bar hello – ünï straße 0",
    "half a \ud800 pair, e\u0301, \U00020000\U00020000",
    "ab ba",
    "...",
    "カタカナ・x",
]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], TEXTS[:1], [""], ["", "a", ""]])
def test_words_are_those_of_the_regular_expression_and_equal_ones_have_equal_hashes(
    texts: list[str],
) -> None:
    expected = [[match[0] for match in WORD.finditer(text)] for text in texts]
    words = hashed_words(texts)

    counts = [int(count) for count in words.offsets[1:] - words.offsets[:-1]]
    assert counts == [len(each) for each in expected]
    flat = [word for each in expected for word in each]
    hashes = dict(zip(flat, words.hashes.tolist(), strict=True))
    assert [hashes[word] for word in flat] == words.hashes.tolist()
    assert len(set(hashes.values())) == len(hashes)
    places = [match.start() for text in texts for match in WORD.finditer(text)]
    assert words.places.tolist() == places
