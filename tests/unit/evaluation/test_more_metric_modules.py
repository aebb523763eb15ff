"""Word overlap, labels, JSON, length, repetition and variety: known values, and those of other packages."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import UserError
from tasks.evaluation.aggregates import macro_f1
from tasks.evaluation.catalog import MetricModule, modules_of, shipped
from tasks.evaluation.computing import compute
from tasks.evaluation.score_worker import load_modules

NAMES = (
    "token_f1",
    "labels",
    "json_validity",
    "schema_match",
    "length_ratio",
    "repetition",
    "distinct",
    "embedding_similarity",
    "judge",
)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        return load_modules(map(shipped, NAMES))


def scored(
    modules: dict[str, Any],
    name: str,
    answers: list[str],
    truth: list[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    result: dict[str, Any] = modules[name].compute(
        predictions=answers, references=truth or [""] * len(answers), **more
    )
    return result


def test_token_f1_of_known_pairs(modules: dict[str, Any]) -> None:
    answers = ["The cat sat!", "a cat", "", "the", "."]
    truth = ["cat, sat down", "dog", "cat", "a", "cat"]
    found = scored(modules, "token_f1", answers, truth)
    # Two of two words and two of three; nothing; blank; nothing but articles twice; once.
    assert found["rows"]["token_f1"] == [pytest.approx(0.8), 0.0, 0.0, 1.0, 0.0]
    assert found["token_f1"] == pytest.approx(1.8 / 5)


def test_labels_of_known_answers(modules: dict[str, Any]) -> None:
    answers = ["Cat ", "dog", "cat", "no idea", ""]
    truth = ["cat", "dog", "dog", "dog", "cat"]
    found = scored(modules, "labels", answers, truth)
    assert found["accuracy"] == 2 / 5
    # cat: one right of two given and two wanted; dog: one right of one given and three wanted.
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["rows"]["accuracy"] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_accuracy_and_macro_f1_are_those_of_scikit_learn(modules: dict[str, Any]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(1)
    for count, labels in ((3, "ab"), (50, "abcde"), (200, "abcdefghij")):
        truth = rng.choices(labels, k=count)
        answers = [t if rng.random() < 0.6 else rng.choice([*labels, "what"]) for t in truth]
        found = scored(modules, "labels", answers, truth)
        wanted = sorted(set(truth))
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answers))
        assert found["macro_f1"] == pytest.approx(
            metrics.f1_score(truth, answers, labels=wanted, average="macro", zero_division=0)
        )
        # And so on every resample, by the labels that it holds.
        statistics = np.asarray(found["statistics"]["macro_f1"])
        drawn = np.random.default_rng(0).integers(count, size=count)
        t, a = [truth[n] for n in drawn], [answers[n] for n in drawn]
        assert float(macro_f1(statistics[drawn].sum(axis=0))) == pytest.approx(
            metrics.f1_score(t, a, labels=sorted(set(t)), average="macro", zero_division=0)
        )


def test_free_text_is_no_label(modules: dict[str, Any]) -> None:
    texts = [f"text {n}" for n in range(300)]
    inputs = {"predictions": texts, "references": texts}
    with pytest.raises(UserError, match="at most 256 different references, and here are 300"):
        compute(shipped("labels"), modules["labels"], 300, inputs)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, 2.5e3, null, true]}', True),
        (" 3 ", True),
        ('"text"', True),
        ("", False),
        ("NaN", False),
        ("[Infinity]", False),
        ("{'a': 1}", False),
        ('{"a": 1,}', False),
        ('```json\n{"a": 1}\n```', False),
        ('{"a": 1} and more', False),
        ("[" * 100_000, False),
    ],
)
def test_json_is_what_the_rfc_says(modules: dict[str, Any], text: str, valid: bool) -> None:
    assert scored(modules, "json_validity", [text])["rows"]["json_validity"] == [float(valid)]
    found = scored(modules, "schema_match", [text], schema={})
    assert found["rows"]["schema_match"] == [float(valid)]


def test_schema_match_of_known_answers(modules: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "size": {"$ref": "#/$defs/size"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"size": {"type": "integer", "minimum": 1}},
    }
    answers = [
        '{"city": "Ulm", "size": 3}',
        '{"city": "Ulm", "size": 0}',
        '{"size": 3}',
        '{"city": "Ulm", "more": 1}',
        "Ulm",
        "",
    ]
    found = scored(modules, "schema_match", answers, schema=schema)
    assert found["rows"]["schema_match"] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert found["schema_match"] == pytest.approx(1 / 6)


def test_a_schema_that_is_none_or_refers_elsewhere_is_refused_in_words(
    modules: dict[str, Any],
) -> None:
    inputs: dict[str, Any] = {"predictions": ["1"], "references": [""]}
    for schema, words in (
        ({"type": "number of things"}, "is no JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/other.json"}, "which is not in it"),
    ):
        with pytest.raises(UserError, match=words):
            compute(
                shipped("schema_match"), modules["schema_match"], 1, {**inputs, "schema": schema}
            )


def test_length_ratio_weighs_words_and_not_rows(modules: dict[str, Any]) -> None:
    found = scored(modules, "length_ratio", ["a b c", "", "x"], ["a b", "a b c d", ""])
    assert found["length_ratio"] == pytest.approx(4 / 6)
    assert found["rows"]["length_ratio"] == [1.5, 0.0, None]


def test_repetition_and_variety_of_known_answers(modules: dict[str, Any]) -> None:
    answers = ["a b c d a b c d a b c d", "a b c d e", "a b c", ""]
    repeated = scored(modules, "repetition", answers)
    # Nine runs of four words, of which four are different.
    assert repeated["rows"]["repetition"] == [pytest.approx(5 / 9), 0.0, 0.0, 1.0]
    varied = scored(modules, "distinct", answers)
    assert varied["rows"]["distinct_1"] == pytest.approx([4 / 12, 1.0, 1.0, 0.0])
    assert varied["rows"]["distinct_2"] == pytest.approx([4 / 11, 1.0, 1.0, 0.0])
    assert varied["distinct_1"] == pytest.approx((4 / 12 + 2) / 4)


@pytest.mark.parametrize(
    "name", ["token_f1", "labels", "json_validity", "distinct", "length_ratio"]
)
def test_empty_answers_score_zero_and_are_counted(modules: dict[str, Any], name: str) -> None:
    found = scored(modules, name, ["", "  "], ["Open it", "Close it"])
    for metric, statistics in found["statistics"].items():
        assert found[metric] == 0.0
        assert len(statistics) == 2


def test_what_was_measured_elsewhere_is_averaged_over_the_rows_that_have_it(
    modules: dict[str, Any],
) -> None:
    assert modules["judge"].compute(verdicts=[0.5, None, 1.0])["judge"] == 0.75
    found = modules["embedding_similarity"].compute(similarity=[0.25, 0.75])
    assert found["embedding_similarity"] == 0.5
    assert np.isnan(modules["judge"].compute(verdicts=[None])["judge"])


OWN = """
import datasets
import evaluate


class Shout(evaluate.Metric):
    direction = "lower"

    def _info(self):
        texts = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(texts)
        )

    def _compute(self, predictions, references):
        rows = [float(text.isupper()) for text in predictions]
        return RETURNED
"""


def own(folder: Path, returned: str) -> tuple[MetricModule, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "shout.py").write_text(OWN.replace("RETURNED", returned), encoding="utf-8")
    module = MetricModule("custom/shout", modules_of(folder)["shout"])
    return module, load_modules([module])["custom/shout"]


@pytest.mark.parametrize(
    "returned",
    [
        '{"shout": sum(rows) / len(rows), "rows": {"shout": rows}}',
        '{"shout": sum(rows) / len(rows)}',
        '{"share": sum(rows) / len(rows)}',
    ],
)
def test_a_module_in_a_folder_is_a_metric_with_or_without_its_rows(
    tmp_path: Path, returned: str
) -> None:
    module, loaded = own(tmp_path / "metrics", returned)
    inputs = {"predictions": ["A", "b", "", "C"], "references": [""] * 4}
    found = compute(module, loaded, 4, inputs)
    assert found.values == {"custom/shout": 0.5}
    assert found.rows == {"custom/shout": [1.0, 0.0, 0.0, 1.0]}
    assert found.statistics["custom/shout"].tolist() == [[1, 1], [0, 1], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ('{"shout": 0.5, "rows": {"shout": rows[1:]}}', "scored 3 of 4 rows"),
        ('{"shout": 0.9, "rows": {"shout": rows}}', "the mean of its rows is 0.5"),
        (
            '{"shout": 0.5, "rows": {"shout": [float("nan")] * 4}}',
            "no finite number for 4 of 4 rows",
        ),
        (
            '{"shout": 1.0, "rows": {"shout": [None if not p else 1.0 for p in predictions]}}',
            r"custom/shout .* for 1 of 4 rows, the first of them row 3 .* whose answer is empty",
        ),
        ('{"shout": float("nan"), "rows": {"shout": rows}}', "says nan for all rows"),
        ('{"shout": 1 / 0}', "ZeroDivisionError"),
        ('{"one": 1, "two": 2}', "its result has no 'shout'"),
    ],
)
def test_a_module_that_keeps_no_promise_is_refused_in_words(
    tmp_path: Path, returned: str, words: str
) -> None:
    module, loaded = own(tmp_path / "metrics", returned)
    inputs = {"predictions": ["A", "b", "", "C"], "references": [""] * 4}
    with pytest.raises(UserError, match=words) as caught:
        compute(module, loaded, 4, inputs)
    assert "shout.py" in str(caught.value)


def test_a_module_that_cannot_be_loaded_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import evaluate\nimport nowhere_at_all\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"broken\.py cannot be loaded"):
        load_modules([MetricModule("custom/broken", tmp_path / "broken.py")])


def test_modules_are_found_as_files_and_as_folders(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("one.py", "_shared.py", "my-own.py", "two/two.py", "two/data.py", "notes.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    found = modules_of(tmp_path)
    assert {name: path.name for name, path in found.items()} == {"one": "one.py", "two": "two.py"}
