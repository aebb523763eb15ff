"""Near-duplicate removal against datasketch's MinHashLSH on the same rows, and what it finds.

Seconds are processor seconds, all threads together, so `near_dedup_rows_per_second` is a figure per
core. Rows are chats of about 400 characters; every fifth is a copy with one character changed.

`decontamination_rows_per_second` is the check of training rows against a twentieth as many evaluation
rows; `..._of_one_form` and `..._of_few_words` the same on rows that resemble each other, where
candidates must not grow with the square of the rows: `seconds_for_four_times_the_rows` says by how
much the slower of the two does.
"""

import random
import time
from collections.abc import Callable

import numpy as np
from datasketch import MinHash, MinHashLSH
from harness import Result, main, ratio

from tasks.dataset.cleaning.contamination import Contamination
from tasks.dataset.cleaning.near import BYTES_PER_ROW, NearDuplicates
from tasks.dataset.cleaning.shingles import LENGTH, compared
from tasks.dataset.cleaning_settings import ContaminationSettings, NearDuplicateSettings
from tasks.dataset.rows import Row

SETTINGS = NearDuplicateSettings()


def _rows(count: int) -> tuple[list[Row], set[int]]:
    """Rows, and which of them are copies of an earlier one."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    texts: list[tuple[str, str]] = []
    copies: set[int] = set()
    for i in range(count):
        if i % 5 == 4:
            prompt, answer = texts[rng.randrange(i)]
            place = rng.randrange(len(prompt) - 1)
            texts.append((f"{prompt[:place]}#{prompt[place + 1 :]}", answer))
            copies.add(i)
        else:
            prompt = " ".join(rng.choices(words, k=rng.randint(20, 50)))
            texts.append((prompt, " ".join(rng.choices(words, k=rng.randint(10, 40)))))
    return [_row(prompt, answer) for prompt, answer in texts], copies


def _product(rows: list[Row]) -> set[int]:
    near = NearDuplicates(SETTINGS, len(rows))
    for row in rows:
        near.add(row)
    found = near.clusters()
    return {int(i) for i in np.flatnonzero(found != np.arange(len(found)))}


def _reference(rows: list[Row]) -> set[int]:
    index = MinHashLSH(threshold=SETTINGS.threshold, num_perm=128)
    removed = set()
    for i, row in enumerate(rows):
        text = " ".join(compared(row))
        sketch = MinHash(num_perm=128)
        sketch.update_batch([text[k : k + LENGTH].encode() for k in range(len(text) - LENGTH + 1)])
        if index.query(sketch):
            removed.add(i)
        else:
            index.insert(str(i), sketch)
    return removed


def _of_one_form(count: int) -> list[Row]:
    """Commands to a smart home: one sentence with blanks."""
    rng = random.Random(1)
    rooms, things = ("kitchen", "bedroom", "garage", "office"), ("light", "fan", "door", "heater")
    return [
        _row(
            f"Please set the {rng.choice(things)} in the {rng.choice(rooms)} to {rng.randrange(100)} "
            f"percent at {rng.randrange(24)}:{rng.randrange(10, 60)} and tell me the result",
            f"The {rng.choice(things)} is set, user {rng.randrange(10_000)}.",
        )
        for _ in range(count)
    ]


def _of_few_words(count: int) -> list[Row]:
    rng = random.Random(2)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 8))) for _ in range(50)]
    return [
        _row(" ".join(rng.choices(words, k=25)), " ".join(rng.choices(words, k=30)))
        for _ in range(count)
    ]


def _row(prompt: str, answer: str) -> Row:
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(turns, group="", source="")


def _decontaminated(rows: list[Row]) -> float:
    """Processor seconds for all of it."""
    tested, trained = rows[: len(rows) // 20], rows[len(rows) // 20 :]
    started = time.process_time()
    Contamination(ContaminationSettings(), tested, trained, len(trained)).matches(trained)
    return time.process_time() - started


def _timed(work: Callable[[list[Row]], set[int]], rows: list[Row]) -> tuple[float, set[int]]:
    started = time.process_time()
    removed = work(rows)
    return time.process_time() - started, removed


def measure(quick: bool) -> Result:
    result = Result("near_duplicates", ("rensa", "datasketch", "numpy"))
    rows, copies = _rows(20_000 if quick else 200_000)
    few = rows[: 1_000 if quick else 5_000]
    _product(few)  # loads the libraries
    pairs = [(_timed(_reference, few), _timed(_product, few)) for _ in range(3 if quick else 5)]
    result.ratios["vs_datasketch"] = ratio([r for (r, _), _ in pairs], [p for _, (p, _) in pairs])
    seconds, removed = min(_timed(_product, rows) for _ in range(3))
    result.values["near_dedup_rows_per_second"] = len(rows) / seconds
    result.values["rows"] = len(rows)
    result.values["recall_of_copies"] = len(removed & copies) / len(copies)
    result.values["precision"] = len(removed & copies) / len(removed)
    result.values["recall_of_datasketch"] = len(pairs[0][0][1] & copies) / len(
        copies & set(range(len(few)))
    )
    result.values["bytes_per_row"] = BYTES_PER_ROW
    _measure_decontamination(result, 4_000 if quick else 16_000)
    return result


def _measure_decontamination(result: Result, count: int) -> None:
    growth = []
    for name, make in (
        ("", lambda count: _rows(count)[0]),
        ("_of_one_form", _of_one_form),
        ("_of_few_words", _of_few_words),
    ):
        seconds = min(_decontaminated(make(count)) for _ in range(2))
        result.values[f"decontamination_rows_per_second{name}"] = count / seconds
        growth.append(min(_decontaminated(make(4 * count)) for _ in range(2)) / seconds)
    result.values["seconds_for_four_times_the_rows"] = max(growth[1:])


if __name__ == "__main__":
    main(measure, __doc__ or "")
