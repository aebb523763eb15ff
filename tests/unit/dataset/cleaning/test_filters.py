import pytest

from tasks.dataset.cleaning.filters import (
    UNDECIDED,
    LanguageFilter,
    Languages,
    LengthFilter,
)
from tasks.dataset.cleaning_settings import LanguageSettings, LengthSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError

LANGUAGES = Languages()


def row(prompt: str, answer: str) -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, "g", "rows.jsonl:1")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_prompt_characters": 6}, "prompt shorter than 6 characters"),
        ({"max_prompt_characters": 4}, "prompt longer than 4 characters"),
        ({"min_answer_characters": 4}, "answer shorter than 4 characters"),
        ({"max_answer_characters": 2}, "answer longer than 2 characters"),
        ({"min_prompt_characters": 5, "max_prompt_characters": 5}, None),
        ({"min_answer_characters": 3, "max_answer_characters": 3}, None),
    ],
)
def test_lengths_at_the_limits_stay_and_beyond_go(
    limits: dict[str, int], reason: str | None
) -> None:
    assert LengthFilter(LengthSettings(**limits)).reason(row("12345", "abc")) == reason


def test_limits_that_leave_no_row_are_refused() -> None:
    with pytest.raises(ValueError, match="no row would be left"):
        LengthSettings(min_answer_characters=10, max_answer_characters=9)


def test_an_answer_that_only_calls_a_tool_has_a_length() -> None:
    call = {"type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
    messages = (
        {"role": "user", "content": "find x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    )

    assert (
        LengthFilter(LengthSettings(min_answer_characters=5)).reason(Row(messages, "g", "s"))
        is None
    )


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The parcel left our warehouse on Monday and arrives tomorrow."),
        ("de", "Das Paket hat unser Lager am Montag verlassen und kommt morgen an."),
        ("fr", "Le colis a quitté notre entrepôt lundi et arrivera demain."),
        ("es", "El paquete salió de nuestro almacén el lunes y llegará mañana."),
        ("ru", "Посылка покинула наш склад в понедельник и прибудет завтра."),
        ("zh", "包裹已于星期一离开我们的仓库，明天到达。"),
        ("ja", "荷物は月曜日に倉庫を出発し、明日到着します。"),
        ("ar", "لم يصل الطرد إلى العميل حتى الآن، وسوف نرسل إليه طردا جديدا يوم الاثنين القادم."),
        (
            "en",
            "```python\nfür = lade_das_paket(lager)\n```\nThis loads the parcel from the warehouse again.",
        ),
    ],
)
def test_a_sentence_is_enough_to_tell_the_language(language: str, text: str) -> None:
    assert LANGUAGES.of(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "ok",
        "",
        "42",
        "```\nreturn self.items[0]\n```",
        "https://acme.org/le/colis/est/arrive",
        "Paris",
    ],
)
def test_text_that_does_not_tell_is_undecided(text: str) -> None:
    assert LANGUAGES.of(text) == UNDECIDED


def test_rows_in_other_languages_go_and_undecided_ones_stay() -> None:
    only_english = LanguageFilter(LanguageSettings(keep=["en"]), LANGUAGES)
    german = "Das Paket hat unser Lager am Montag verlassen und kommt morgen an."

    assert only_english.reason(row("Where is it?", german)) == "in another language (de)"
    assert (
        only_english.reason(row(german, "It left our warehouse on Monday and arrives tomorrow."))
        is None
    )
    assert only_english.reason(row(german, "ok")) == "in another language (de)"
    assert only_english.reason(row("2 + 2", "4")) is None


def test_a_language_that_cannot_be_told_is_refused_with_those_that_can() -> None:
    with pytest.raises(DataError, match=r"has qq, which cannot be told. Known: .*de.*en"):
        LanguageFilter(LanguageSettings(keep=["en", "qq"]), LANGUAGES)
    with pytest.raises(ValueError, match="ISO 639-1"):
        LanguageSettings(keep=["English"])
