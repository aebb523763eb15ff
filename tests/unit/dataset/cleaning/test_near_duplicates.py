import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.dataset.cleaning import near
from tasks.dataset.cleaning.near import BYTES_PER_ROW, NearDuplicates
from tasks.dataset.cleaning.shingles import LENGTH, compared
from tasks.dataset.cleaning_settings import NearDuplicateSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError

_rng = random.Random(0)
WORDS = [
    "".join(_rng.choices("abcdefghijklmnopqrstuvwxyz", k=_rng.randint(2, 9))) for _ in range(5000)
]


def row(prompt: str, answer: str, system: str | None = None) -> Row:
    before = ({"role": "system", "content": system},) if system else ()
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row((*before, *turns), "g", "rows.jsonl:1")


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def clusters(
    rows: list[Row], priority: list[float] | None = None, threshold: float = 0.85
) -> list[int]:
    found = NearDuplicates(NearDuplicateSettings(threshold=threshold), len(rows))
    for each in rows:
        found.add(each)
    order = None if priority is None else np.array(priority)
    return [int(i) for i in found.clusters(order)]


def jaccard(first: Row, second: Row) -> float:
    def pieces(row: Row) -> set[str]:
        text = " ".join(compared(row))
        return {text[i : i + LENGTH] for i in range(len(text) - LENGTH + 1)}

    return len(pieces(first) & pieces(second)) / len(pieces(first) | pieces(second))


def test_injected_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(1)
    rows: list[Row] = []
    copy_of: dict[int, int] = {}
    for i in range(3000):
        if i > 10 and rng.random() < 0.2:
            original = rng.randrange(i)
            prompt, answer = rows[original].messages[0]["content"], rows[original].answer
            place = rng.randrange(len(prompt) - 2)
            rows.append(row(f"{prompt[:place]}#{prompt[place + 1 :]}", answer))
            copy_of[i] = original
        else:
            rows.append(row(words(rng, rng.randint(20, 40)), words(rng, rng.randint(10, 40))))

    found = {i for i, first in enumerate(clusters(rows)) if first != i}

    assert len(copy_of) > 500
    assert len(found & copy_of.keys()) >= 0.98 * len(copy_of)
    assert not found - copy_of.keys()


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.85, 0.95])
def test_every_row_resembles_the_one_that_stands_for_it(threshold: float) -> None:
    """Chains of small changes: their ends are no copies of each other."""
    rng = random.Random(2)
    rows = []
    for _ in range(20):
        prompt, answer = words(rng, 60).split(), words(rng, 20)
        for _ in range(20):
            prompt[rng.randrange(30)] = rng.choice(WORDS)
            rows.append(row(" ".join(prompt), answer))

    found = clusters(rows, threshold=threshold)

    removed = [(i, first) for i, first in enumerate(found) if first != i]
    assert removed
    # The estimate from 128 slots of one byte has a standard deviation of at most 0.045.
    assert min(jaccard(rows[i], rows[first]) for i, first in removed) > threshold - 0.15
    assert all(found[first] == first for _, first in removed)
    kept = [i for i, first in enumerate(found) if first == i]
    alike = [
        (i, k)
        for i in kept
        for k in range(i + 1, i // 20 * 20 + 20)
        if k in kept and jaccard(rows[i], rows[k]) > threshold + 0.1
    ]
    assert len(alike) <= 1


def test_the_row_with_the_smallest_priority_stays_wherever_it_stands() -> None:
    rng = random.Random(3)
    originals = [(words(rng, 30), words(rng, 20)) for _ in range(50)]
    rows = [row(f"{prompt}{mark}", answer) for prompt, answer in originals for mark in ".!?"]
    priority = [rng.random() for _ in rows]
    shuffled = rng.sample(range(len(rows)), len(rows))

    kept = {rows[i].id for i in clusters(rows, priority)}
    kept_shuffled = {
        rows[shuffled[i]].id
        for i in clusters([rows[k] for k in shuffled], [priority[k] for k in shuffled])
    }

    assert kept == kept_shuffled
    assert len(kept) == 50
    for start in range(0, len(rows), 3):
        smallest = min(range(start, start + 3), key=priority.__getitem__)
        assert rows[smallest].id in kept


def test_rows_of_one_long_template_are_no_copies_of_each_other() -> None:
    instruction = words(random.Random(4), 100)
    rows = [
        row(f"{instruction}\n\nReview: {words(random.Random(i), 8)}", "positive")
        for i in range(200)
    ]

    assert clusters(rows) == list(range(200))


def test_copies_among_rows_of_one_template_are_found() -> None:
    rng = random.Random(9)
    instruction = words(rng, 100)
    rows = [row(f"{instruction}\n\n{words(rng, 12)}", words(rng, 20)) for _ in range(500)]
    copies = [row(f"{r.messages[0]['content']}!", r.answer) for r in rows[:100]]

    found = clusters([*rows, *copies])

    assert found[:500] == list(range(500))
    assert sum(first == i for i, first in enumerate(found[500:])) >= 97


def test_questions_about_one_document_are_no_copies_of_each_other() -> None:
    rng = random.Random(5)
    document = words(rng, 500)
    rows = [row(f"{document}\n\n{words(rng, 9)}?", words(rng, 12)) for _ in range(100)]

    assert clusters(rows) == list(range(100))


def test_a_shared_system_prompt_makes_no_copies() -> None:
    rng = random.Random(6)
    rules = words(rng, 1000)
    rows = [row(words(rng, 8), words(rng, 8), system=rules) for _ in range(100)]

    assert clusters(rows) == list(range(100))


def test_case_and_layout_do_not_hide_a_copy() -> None:
    text = "Explain how a hash table resolves collisions, and when it is resized."

    assert clusters([row(text, "By chaining."), row(f"  {text.upper()}\n", "by  chaining.")]) == [
        0,
        0,
    ]


def test_rows_that_differ_only_in_figures_are_no_copies_of_each_other() -> None:
    """An account's balance is all that such a row teaches."""

    def balance(account: int, euros: int) -> Row:
        asked = (
            f"What is the balance of account {account} at the end of the year 2025 by the ledger?"
        )
        said = f"At the end of the year 2025 account {account} holds {euros} euros by the ledger."
        return row(asked, said)

    rows = [balance(1000 + i, 17 * i) for i in range(100)]
    same = row(f"{rows[3].messages[0]['content']}!", rows[3].answer)

    assert clusters([*rows, same]) == [*range(100), 3]


def test_texts_shorter_than_a_piece_are_compared_whole() -> None:
    assert clusters([row("a", "b"), row("a", "b"), row("a", "c"), row("", "")]) == [0, 0, 2, 3]


def test_no_rows_give_no_clusters() -> None:
    assert clusters([]) == []


FILL = """
import sys
from pathlib import Path
import numpy as np
from tasks.dataset.cleaning.near import NearDuplicates
from tasks.dataset.cleaning_settings import NearDuplicateSettings
from tasks.dataset.rows import Row

rows, expected = map(int, sys.argv[1:])
found = NearDuplicates(NearDuplicateSettings(), expected)
for i in range(rows):
    prompt = {"role": "user", "content": f"question {i % 15_000 * 7919}"}
    found.add(Row((prompt, {"role": "assistant", "content": f"answer {i % 30_000}"}), "g", "s"))
found.clusters(np.random.default_rng(0).random(rows))
# Not getrusage's figure: that begins with what the parent had.
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def peak_bytes(rows: int, expected: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(rows), str(expected)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False], ids=["number of rows known", "unknown"])
def test_memory_grows_by_no_more_than_the_stated_bytes_per_row(known: bool) -> None:
    """What the whole process takes more for more rows, with several copies of every row."""
    # So many that the megabyte or two by which equal processes differ is little a row.
    few, many = 100_000, 400_000
    grown = peak_bytes(many, many if known else 0) - peak_bytes(few, few if known else 0)

    assert BYTES_PER_ROW <= 300
    assert 192 < grown / (many - few) < BYTES_PER_ROW


def test_rows_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError) as refused:
        NearDuplicates(NearDuplicateSettings(), 2_000_000, memory_bytes=100_000_000)

    message = str(refused.value)
    assert "2,000,000 rows needs 0.56 GB" in message
    assert "0.10 GB are free" in message
    assert "dataset.cleaning.near_duplicates to null" in message


def test_rows_that_turn_out_not_to_fit_are_refused_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(near, "_BATCH_ROWS", 10)
    found = NearDuplicates(NearDuplicateSettings(), memory_bytes=20 * BYTES_PER_ROW)

    for i in range(29):
        found.add(row(f"question {i}", f"answer {i}"))

    with pytest.raises(DataError, match="among 30 rows"):
        found.add(row("the thirtieth", "is one too many"))
