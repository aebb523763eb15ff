import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.dataset.cleaning.contamination import (
    BYTES_PER_EVALUATION_CHARACTER,
    BYTES_PER_EVALUATION_ROW,
    Contamination,
)
from tasks.dataset.cleaning.found import Match
from tasks.dataset.cleaning.similar import _Index
from tasks.dataset.cleaning_settings import ContaminationSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError

SETTINGS = ContaminationSettings()
_rng = random.Random(0)
WORDS = [
    "".join(_rng.choices("abcdefghijklmnopqrstuvwxyz", k=_rng.randint(2, 9))) for _ in range(5000)
]
LETTER = (
    "Write to a customer whose order is late. Say that the parcel left our warehouse on Monday, "
    "that the carrier lost it in the depot near Lyon, and that a new one goes out today; offer to "
    "pay back the delivery, and ask whether the old address is still right."
)
ANSWER = (
    "Dear customer, I am sorry that your order has not arrived. It left our warehouse on Monday and "
    "was lost on its way, so we send a new one today. We pay back the delivery. Is your address right?"
)


def row(prompt: str, answer: str, system: str | None = None) -> Row:
    before = ({"role": "system", "content": system},) if system else ()
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row((*before, *turns), "g", "rows.jsonl:1")


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def near_copy(text: str, rng: random.Random) -> str:
    """One word in eight changed, clauses in another order."""
    parts = text.split(" ")
    for i in range(3, len(parts), 8):
        parts[i] = rng.choice(WORDS)
    clauses = [" ".join(parts[i : i + 10]) for i in range(0, len(parts), 10)]
    rng.shuffle(clauses)
    return ", ".join(clauses)


def matches(
    train: list[Row], evaluation: list[Row], settings: ContaminationSettings = SETTINGS
) -> list[Match | None]:
    return Contamination(settings, evaluation, train).matches(train)


def test_a_planted_near_copy_is_found_among_other_rows() -> None:
    rng = random.Random(1)
    evaluation = [
        row(words(rng, rng.randint(20, 60)), words(rng, rng.randint(20, 60))) for _ in range(300)
    ]
    evaluation[123] = row(LETTER, ANSWER)
    train = [row(words(rng, 40), words(rng, 30)) for _ in range(500)]
    train[77] = row(near_copy(LETTER, rng), near_copy(ANSWER, rng))

    found = matches(train, evaluation)

    assert [i for i, match in enumerate(found) if match] == [77]
    planted = found[77]
    assert planted is not None
    assert (planted.evaluation, planted.how) == (123, "similar text")
    assert planted.share >= 0.5


@pytest.mark.parametrize("length", [20, 60, 300])
def test_near_copies_of_any_length_are_found(length: int) -> None:
    rng = random.Random(2)
    evaluation = [row(words(rng, length), words(rng, length // 2)) for _ in range(200)]
    train = [
        row(near_copy(e.messages[0]["content"], rng), near_copy(e.answer, rng)) for e in evaluation
    ]

    found = matches(train, evaluation)

    right = sum(match is not None and match.evaluation == i for i, match in enumerate(found))
    assert right >= (190 if length > 20 else 150)


def test_an_evaluation_row_quoted_inside_a_long_text_is_found() -> None:
    rng = random.Random(3)
    evaluation = [row(words(rng, 30), words(rng, 30)) for _ in range(50)]
    quoted = f"{evaluation[7].messages[0]['content']} {evaluation[7].answer}"
    train = [row("Summarise.", f"{words(rng, 2000)} {quoted} {words(rng, 2000)}")]

    (match,) = matches(train, evaluation)

    assert match == Match(7, "runs of words", 1.0)


def test_an_evaluation_prompt_with_another_answer_is_found() -> None:
    rng = random.Random(4)
    evaluation = [row(words(rng, 30), words(rng, 200)) for _ in range(50)]
    train = [row(evaluation[9].messages[0]["content"].upper(), words(rng, 200))]

    (match,) = matches(train, evaluation)

    assert match is not None
    assert match.evaluation == 9


@pytest.mark.parametrize("rows", [10, 100, 1000])
def test_a_shared_instruction_is_no_contamination(rows: int) -> None:
    rng = random.Random(5)
    instruction = words(rng, 80)
    system = words(rng, 300)

    def one() -> Row:
        return row(f"{instruction}\n\n{words(rng, 12)}", words(rng, 5), system)

    assert matches([one() for _ in range(500)], [one() for _ in range(rows)]) == [None] * 500


def test_a_quotation_and_a_common_phrase_are_no_contamination() -> None:
    rng = random.Random(6)
    evaluation = [row(words(rng, 60), words(rng, 60)) for _ in range(50)]
    quotation = " ".join(evaluation[3].messages[0]["content"].split()[:25])

    assert matches([row(f"{words(rng, 40)} {quotation}", words(rng, 40))], evaluation) == [None]


def test_text_without_spaces_is_compared_too() -> None:
    text = "请写一封信给订单延误的客户，说明包裹已于星期一离开我们的仓库，承运人在里昂附近的仓库丢失了包裹，今天将寄出新的包裹。"
    evaluation = [row(text, "尊敬的客户，很抱歉您的订单尚未送达，我们今天会寄出新的包裹。")]

    quoted, changed, other = matches(
        [
            row(f"参考：{text}谢谢", "好的"),
            row(
                text.replace("星期一", "星期五"),
                "尊敬的客户，很抱歉您的订单还没有送达，我们今天会寄出新的包裹。",
            ),
            row(
                "法国的首都是什么？请用一句话回答，并说明它位于哪条河边。",
                "法国的首都是巴黎，位于塞纳河边。",
            ),
        ],
        evaluation,
    )

    assert quoted is not None
    assert quoted.how == "runs of words"
    assert changed is not None
    assert other is None


def test_the_outcome_does_not_depend_on_the_order_of_training_rows() -> None:
    rng = random.Random(7)
    evaluation = [row(words(rng, 30), words(rng, 30)) for _ in range(100)]
    train = [
        row(near_copy(e.messages[0]["content"], rng), e.answer)
        if i % 3
        else row(words(rng, 9), "x")
        for i, e in enumerate(evaluation * 15)
    ]
    shuffled = rng.sample(range(len(train)), len(train))

    straight = matches(train, evaluation)

    assert len(train) > 1024
    assert matches([train[i] for i in shuffled], evaluation) == [straight[i] for i in shuffled]


def test_rows_too_short_to_be_recognised_are_counted_and_flag_nothing() -> None:
    check = Contamination(SETTINGS, [row("2+2?", "4"), row("Hi", "Hello"), row(LETTER, ANSWER)])

    assert check.unchecked == 2
    assert check.matches([row("2+2?", "5"), row("Hi", "Hey"), row("", "")]) == [None] * 3


def test_empty_sides_give_nothing() -> None:
    assert matches([], [row(LETTER, ANSWER)]) == []
    assert matches([row(LETTER, ANSWER)], []) == [None]
    assert Contamination(SETTINGS, []).unchecked == 0


def sentence(i: int) -> Row:
    return row(
        f"Question number {i} about topic {7 * i} please explain the thing {i} in detail",
        f"Answer {i}: the {i} thing is explained by {3 * i} arguments.",
    )


def family(i: int, rng: random.Random, instruction: str) -> Row:
    return row(f"{instruction} {words(rng, 2)}?", f"Sure: {words(rng, 3)}")


@pytest.mark.parametrize("tested", [1, 3, 10])
def test_rows_of_one_sentence_form_do_not_repeat_each_other(tested: int) -> None:
    rows = [sentence(i) for i in range(100)]
    check = Contamination(SETTINGS, rows[:tested], rows[tested:])

    assert not any(check.matches(rows[tested:]))


def test_a_long_instruction_with_a_single_test_row_is_no_contamination() -> None:
    rng = random.Random(9)
    instruction = words(rng, 40)
    rows = [row(f"{instruction} {words(rng, 15)}", rng.choice(WORDS)) for _ in range(100)]

    assert not any(matches(rows[1:], rows[:1]))


def test_families_of_twenty_rows_do_not_repeat_each_other() -> None:
    rng = random.Random(10)
    instructions = [words(rng, 18) for _ in range(60)]
    rows = [family(i, rng, instructions[i % 60]) for i in range(1200)]

    assert not any(matches(rows[60:], rows[:60]))


def test_near_copies_are_found_inside_rows_of_one_form() -> None:
    """What is left beside the form is compared."""
    rng = random.Random(11)
    instruction = words(rng, 40)
    rows = [row(f"{instruction} {words(rng, 40)}", words(rng, 30)) for _ in range(300)]
    stolen = rows[5].messages[0]["content"].removeprefix(instruction)
    copy = row(f"{instruction} {near_copy(stolen, rng)}", near_copy(rows[5].answer, rng))

    found = matches([*rows[20:], copy], rows[:20])

    assert not any(found[:-1])
    assert found[-1] is not None
    assert found[-1].evaluation == 5


@pytest.mark.parametrize(("copies", "seen"), [(10, 10), (11, 0), (40, 0)])
def test_variations_in_more_than_ten_training_rows_are_told_as_what_nobody_can_judge(
    copies: int, seen: int
) -> None:
    rng = random.Random(12)
    train = [row(near_copy(LETTER, rng), near_copy(ANSWER, rng)) for _ in range(copies)]
    train += [row(words(rng, 40), words(rng, 30)) for _ in range(100)]
    other = row(words(rng, 40), words(rng, 30))

    check = Contamination(SETTINGS, [other, row(LETTER, ANSWER)], train)

    assert sum(match is not None for match in check.matches(train)) == seen
    assert check.resembled == ([] if seen else [1])
    assert check.unchecked == (0 if seen else 1)


@pytest.mark.parametrize("copies", [3, 11, 60])
def test_a_row_that_is_quoted_whole_is_a_leak_however_many_rows_quote_it(copies: int) -> None:
    rng = random.Random(14)
    evaluation = [row(words(rng, 25), words(rng, 60)) for _ in range(5)]
    quoted = f"{evaluation[2].messages[0]['content']} {evaluation[2].answer}"
    train = [
        row(f"{words(rng, 10)} {quoted} {words(rng, 10)}", words(rng, 12)) for _ in range(copies)
    ]
    train += [row(words(rng, 25), words(rng, 40)) for _ in range(100)]

    check = Contamination(SETTINGS, evaluation, train)
    found = check.matches(train)

    assert [match is not None and match.evaluation == 2 for match in found] == [
        *[True] * copies,
        *[False] * 100,
    ]
    assert (check.resembled, check.unchecked) == ([], 0)


def test_an_answer_that_many_questions_share_is_a_form_and_told() -> None:
    """Answers of a support desk, word for word: the questions differ, so nothing has leaked."""
    rng = random.Random(15)
    canned = words(rng, 40)
    train = [row(words(rng, 20), canned) for _ in range(30)]
    train += [row(words(rng, 20), words(rng, 40)) for _ in range(100)]

    check = Contamination(SETTINGS, [row(words(rng, 20), canned)], train)

    assert not any(check.matches(train))
    assert (check.resembled, check.unchecked) == ([0], 1)


@pytest.mark.parametrize(("rows", "found"), [(3, 3), (11, 0)])
def test_an_evaluation_row_in_a_system_prompt_is_found(rows: int, found: int) -> None:
    rng = random.Random(16)
    tested = row(words(rng, 30), words(rng, 40))
    example = f"Answer like this: {tested.messages[0]['content']} {tested.answer}"
    train = [row(words(rng, 9), words(rng, 9), example) for _ in range(rows)]
    train += [row(words(rng, 9), words(rng, 9), words(rng, 90)) for _ in range(20)]

    check = Contamination(SETTINGS, [tested], train)
    matches_found = check.matches(train)

    assert [m.how for m in matches_found if m] == ["in the system prompt"] * found
    assert all(matches_found[:found])
    assert check.resembled == ([] if found else [0])


FILL = """
import random, sys
from pathlib import Path
from tasks.dataset.cleaning.contamination import Contamination
from tasks.dataset.cleaning_settings import ContaminationSettings
from tasks.dataset.rows import Row

rng = random.Random(0)
words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(20_000)]

def row(_):
    asked, said = (" ".join(rng.choices(words, k=count)) for count in (25, 45))
    turns = {"role": "user", "content": asked}, {"role": "assistant", "content": said}
    return Row(turns, "g", "s")

count = int(sys.argv[1])
check = Contamination(ContaminationSettings(), map(row, range(count)), map(row, range(200)), 200)
check.matches(map(row, range(200)))
check.unchecked
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def test_memory_grows_by_no_more_than_the_stated_bytes_per_evaluation_row() -> None:
    few, many = 1_000, 8_000
    done = [
        subprocess.run(
            [sys.executable, "-c", FILL, str(count)],
            cwd=Path(__file__).parents[4],
            capture_output=True,
            text=True,
            check=True,
        )
        for count in (few, many)
    ]
    grown = int(done[1].stdout) - int(done[0].stdout)
    # 70 words of 6 letters and the spaces between them.
    stated = BYTES_PER_EVALUATION_ROW + 490 * BYTES_PER_EVALUATION_CHARACTER

    assert stated <= 12_000
    assert stated / 10 < grown / (many - few) < stated


def test_evaluation_rows_that_do_not_fit_into_memory_are_refused_with_the_numbers() -> None:
    rows = (row(words(random.Random(i), 25), words(random.Random(i), 45)) for i in range(10_000))

    with pytest.raises(DataError) as refused:
        Contamination(SETTINGS, rows, memory_bytes=1_000_000)

    message = str(refused.value)
    assert (
        f"{BYTES_PER_EVALUATION_ROW:,} bytes a row and {BYTES_PER_EVALUATION_CHARACTER} a"
        in message
    )
    assert "0.00 GB are free" in message
    assert "dataset.split.max_test_rows" in message
    assert next(rows, None) is not None, "all rows were read before the refusal"


def test_evaluation_rows_with_one_prompt_are_recognised_by_it() -> None:
    """A frozen set may hold many answers to one question."""
    rng = random.Random(13)
    evaluation = [row(LETTER, words(rng, 30)) for _ in range(40)]

    (match,) = matches([row(LETTER, words(rng, 30))], evaluation)

    assert match is not None
    assert match.how == "runs of words"


def test_texts_that_share_all_bands_are_not_compared_pair_by_pair() -> None:
    """A set of 2,000 texts of one kind would otherwise be compared with each text asked."""
    alike = np.zeros((2000, 256), dtype=np.uint8)
    index = _Index(alike, np.arange(2000))

    rows, known = index.candidates(alike[:1000], np.arange(1000))

    assert len(rows) == 1000 * 16
    assert len(set(zip(rows.tolist(), known.tolist(), strict=True))) == len(rows)


def test_higher_thresholds_find_less() -> None:
    rng = random.Random(8)
    evaluation = [row(LETTER, ANSWER)]
    train = [row(near_copy(LETTER, rng), near_copy(ANSWER, rng))]

    assert matches(train, evaluation, ContaminationSettings(similarity=0.9)) == [None]


def test_short_rows_of_one_form_do_not_repeat_each_other() -> None:
    rows = [row(f"What is {i} + 1?", f"It is {i + 1}.") for i in range(200)]

    assert not any(matches(rows[40:], rows[:40]))
