"""The whole stage with everything that a recipe may ask for, then scored again without a model."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter, Report, Tokens
from tasks.base import Base
from tasks.errors import UserError
from tasks.evaluation import work
from tasks.evaluation.rescoring import find_stored, rescore
from tasks.evaluation.settings import EvaluationSettings
from tasks.home import Home
from tasks.store import Store

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {
    "max_new_tokens": 8,
    "batch_size": 4,
    "bootstrap_samples": 100,
    "sample_answers": 2,
    "metrics": ["accuracy", "macro_f1", "json_validity"],
    "metrics_folder": "metrics",
    "json_schema": "answer.schema.json",
    "slices": ["length", "turns", "source", "label"],
    "retention": "general.jsonl",
    "gate": [
        {"metric": "rougeL", "slice": "*", "max_drop": 1.0, "against": "base", "min_rows": 1},
        {"suite": "retention", "max_drop": 1.0, "against": "base", "min_rows": 1},
        {"metric": "custom/words", "min": 0},
    ],
}
OWN = """
import datasets
import evaluate


class Words(evaluate.Metric):
    def _info(self):
        texts = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(texts)
        )

    def _compute(self, predictions, references):
        rows = [float(len(text.split())) for text in predictions]
        return {"words": sum(rows) / len(rows), "rows": {"words": rows}}
"""
GENERAL = [
    {"prompt": "Name a colour.", "answer": "Blue."},
    {
        "messages": [
            {"role": "user", "content": "Say one."},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "And two?"},
            {"role": "assistant", "content": "Two."},
        ]
    },
]


@dataclass
class Made:
    report: Report
    home: Home
    recipe: Path
    dataset: Path

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.report.path / "metrics.json").read_text())
        return found


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokens: Tokens,
    tiny: Base,
    challenger: Adapter,
    champion: Adapter,
) -> Made:
    root = tmp_path_factory.mktemp("asked")
    home = Home(root / "home")
    recipe = root / "recipe"
    (recipe / "metrics").mkdir(parents=True)
    (recipe / "metrics" / "words.py").write_text(OWN, encoding="utf-8")
    (recipe / "answer.schema.json").write_text('{"type": "string"}', encoding="utf-8")
    lines = "\n".join(json.dumps(row) for row in GENERAL)
    (recipe / "general.jsonl").write_text(lines + "\n", encoding="utf-8")
    rows = [
        {
            "id": f"row-{n}",
            "messages": [{"role": "user"}, {"role": "assistant"}] * (1 + n % 2),
            "source": f"{'ab'[n % 2]}.py:{n}",
            "label": "x" if n < 3 else None,
        }
        for n in range(9)
    ]
    lines = "\n".join(map(json.dumps, rows))
    stored = Store(home.store).publish(
        "dataset", "d" * 64, lambda folder: (folder / "test.jsonl").write_text(lines) and None
    )
    dataset = stored.path
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment().items():
            patch.setenv(name, value)
        report = work.evaluate_adapter(
            Store(home.store),
            EvaluationSettings.model_validate(ASKED),
            tokens=chat_tokens,
            adapter=challenger,
            base=tiny,
            champion=champion.folder,
            champion_sha256=champion.sha256,
            home=home,
            recipe_folder=recipe,
            dataset=dataset,
        )
    return Made(report, home, recipe, dataset)


def test_what_was_asked_for_is_measured_for_every_model(made: Made) -> None:
    asked = {"accuracy", "macro_f1", "json_validity", "schema_match", "custom/words"}
    for values in made.report.metrics.values():
        assert values is not None
        assert asked <= set(values)
    assert made.facts["directions"]["custom/words"] == 1
    assert made.facts["directions"]["loss"] == -1
    assert made.facts["directions"]["mean_length"] == 0
    assert "custom/words" in made.facts["metric_modules"]


def test_every_slice_holds_its_rows_and_their_own_numbers(made: Made) -> None:
    slices = made.facts["slices"]
    assert {name: sum(one["rows"] for one in found.values()) for name, found in slices.items()} == {
        "length": 9,
        "turns": 9,
        "source": 9,
        "label": 3,
    }
    assert set(slices["source"]) == {"a.py", "b.py"}
    assert set(slices["turns"]) == {"1 turn", "2-3 turns"}
    scores = pq.read_table(made.report.path / "scores.parquet").to_pydict()
    for label, start in (("a.py", 0), ("b.py", 1)):
        rows = scores["challenger_rougeL"][start::2]
        found = slices["source"][label]
        assert found["metrics"]["challenger"]["rougeL"] == pytest.approx(sum(rows) / len(rows))
        gain = found["differences"]["champion"]["rougeL"]
        assert gain["low"] <= gain["mean"] <= gain["high"]


def test_the_general_set_is_measured_beside_the_test_rows(made: Made) -> None:
    suite = made.facts["suites"]["retention"]
    assert suite["rows"] == 2
    for model in ("base", "champion", "challenger"):
        assert suite["metrics"][model]["loss"] > 0
    predictions = pq.read_table(made.report.path / "retention.parquet").to_pylist()
    assert [row["reference"] for row in predictions] == ["Blue.", "Two."]
    assert predictions[1]["prompt"].count("<|user|>") == 2
    # "Blue." and the end of the turn: nothing of the prompt carries loss.
    assert all(0 < row["trained_tokens"] < 12 for row in predictions)


def test_rules_on_slices_suites_and_own_metrics_are_judged(made: Made) -> None:
    gate: Any = made.report.gate
    assert [rule["passed"] for rule in gate["rules"]] == [True, True, True], gate


def test_the_prompts_hash_is_recorded(made: Made) -> None:
    assert len(made.facts["answers"]["prompts_sha256"]) == 64
    assert made.facts["answers"]["reused"] == []


def evaluate(made: Made, tokens: Tokens, base: Base, adapter: Adapter, **changed: Any) -> Report:
    champion = changed.pop("champion", None)
    return work.evaluate_adapter(
        Store(made.home.store),
        EvaluationSettings.model_validate({**ASKED, **changed.pop("settings", {})}),
        tokens=tokens,
        adapter=adapter,
        base=base,
        champion=champion and champion.folder,
        champion_sha256=champion and champion.sha256,
        home=made.home,
        recipe_folder=made.recipe,
        dataset=made.dataset,
        **changed,
    )


def answers_of(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report.path / "metrics.json").read_text())["answers"]
    return found


def test_predictions_are_reused_only_where_everything_they_depend_on_is_equal(
    made: Made, chat_tokens: Tokens, tiny: Base, challenger: Adapter, champion: Adapter
) -> None:
    # Other rules, and yesterday's challenger is champion: nothing has to be answered.
    again = evaluate(made, chat_tokens, tiny, champion, champion=challenger, settings={"gate": []})
    assert answers_of(again)["reused"] == ["base", "champion", "challenger"]
    ours = pq.read_table(again.path / "predictions.parquet")
    theirs = pq.read_table(made.report.path / "predictions.parquet")
    assert ours["champion_answer"] == theirs["challenger_answer"]
    assert ours["challenger_nll"] == theirs["champion_nll"]
    # Another decoding, other arithmetic, another batch: everything is.
    for settings in ({"max_new_tokens": 9}, {"batch_size": 5}, {"dtype": "bfloat16"}):
        other = evaluate(
            made,
            chat_tokens,
            tiny,
            challenger,
            settings={**settings, "retention": None, "gate": []},
        )
        assert answers_of(other)["reused"] == [], settings
    forced = evaluate(made, chat_tokens, tiny, challenger, settings={"gate": []}, force=True)
    assert answers_of(forced)["reused"] == []


def test_damaged_predictions_are_not_reused(
    made: Made, chat_tokens: Tokens, tiny: Base, challenger: Adapter
) -> None:
    settings = {"gate": [], "retention": None, "slices": [], "max_new_tokens": 7}
    evaluate(made, chat_tokens, tiny, challenger, settings=settings)
    for number, file in enumerate(sorted((made.home.cache / "predictions").glob("*.parquet"))):
        if number % 2:
            file.write_bytes(file.read_bytes()[:-100])
        else:
            table = pq.read_table(file)
            answers = pa.array(["other", *table["answer"].to_pylist()[1:]])
            place = table.column_names.index("answer")
            pq.write_table(table.set_column(place, "answer", answers), file)
    settings["bootstrap_samples"] = 101
    again = evaluate(made, chat_tokens, tiny, challenger, settings=settings)
    assert answers_of(again)["reused"] == []


def test_a_rescoring_gives_the_same_numbers_without_a_model(made: Made, tmp_path: Path) -> None:
    store = Store(made.home.store)
    by_run = find_stored(
        "a" * 32, store, lambda run: {"loraline.fingerprint.evaluation": made.report.fingerprint}
    )
    by_key = find_stored(made.report.fingerprint[:12], store, lambda run: {})
    assert by_run == by_key
    assert by_key.settings == EvaluationSettings.model_validate(ASKED)
    facts = rescore(
        by_key,
        EvaluationSettings.model_validate({**ASKED, "slices": ["length"], "gate": []}),
        recipe_folder=made.recipe,
        output=tmp_path / "again",
        home=made.home,
    )
    assert facts["metrics"] == made.facts["metrics"]
    assert facts["slices"]["length"] == made.facts["slices"]["length"]
    assert facts["suites"] == made.facts["suites"]
    assert facts["gate"] is None
    assert (tmp_path / "again" / "report.md").is_file()
    assert facts["answers"] == made.facts["answers"]
    assert facts["dataset"] == "d" * 64


def test_an_evaluation_knows_its_dataset_however_it_is_named(made: Made, tmp_path: Path) -> None:
    """Slices by source need the dataset's rows."""
    store, settings = Store(made.home.store), EvaluationSettings(slices=["source"])
    assert made.facts["dataset"] == "d" * 64
    for number, named in enumerate((made.report.fingerprint[:12], str(made.report.path))):
        facts = rescore(
            find_stored(named, store, lambda run: {}),
            settings,
            recipe_folder=made.recipe,
            output=tmp_path / str(number),
            home=made.home,
        )
        found, expected = facts["slices"]["source"], made.facts["slices"]["source"]
        assert {name: part["rows"] for name, part in found.items()} == {
            name: part["rows"] for name, part in expected.items()
        }
        # Of the metrics that were asked for again.
        assert all(
            part["metrics"]["base"].items() <= expected[name]["metrics"]["base"].items()
            for name, part in found.items()
        )
    # A rescoring can be scored again, too.
    again = find_stored(str(tmp_path / "0"), store, lambda run: {})
    assert again.dataset == made.dataset


def test_a_rescoring_that_fails_leaves_its_folder_free_for_the_next(
    made: Made, tmp_path: Path
) -> None:
    stored = find_stored(made.report.fingerprint, Store(made.home.store), lambda run: {})
    output = tmp_path / "again"

    def attempt(slicing: str) -> None:
        settings = EvaluationSettings(slices=[slicing])
        rescore(stored, settings, recipe_folder=made.recipe, output=output, home=made.home)

    with pytest.raises(UserError, match="names 'colour', which no test row has"):
        attempt("colour")
    assert list(tmp_path.iterdir()) == []
    output.mkdir()
    with pytest.raises(UserError, match="names 'colour', which no test row has"):
        attempt("colour")
    assert list(output.iterdir()) == []
    attempt("length")
    assert (output / "report.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_rescoring_imports_no_torch(made: Made, tmp_path: Path) -> None:
    """Neither here nor in the process that scores."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "def tell():\n"
        "    with open(os.environ['IMPORTED'], 'a') as file:\n"
        "        for name in ('torch', 'transformers', 'evaluate'):\n"
        "            file.write(f'{name} ' if sys.modules.get(name) is not None else '')\n"
        "atexit.register(tell)\n"
    )
    code = (
        "import sys; sys.argv = ['loraline']; from flows.cli import main;"
        f"sys.exit(main(['rescore', {str(made.report.path)!r}, '--recipe', {str(tmp_path / 'r.yaml')!r},"
        f"'--output', {str(tmp_path / 'out')!r}, '--home', {str(made.home.root)!r}, '--json']))"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        f"name: again\nbase: {Path('examples/starter').absolute()}\n"
        "dataset:\n  sources:\n    - {type: jsonl, path: rows.jsonl}\n"
        "evaluation:\n  metrics: [json_validity]\n  slices: [length]\n"
        "  gate:\n    - {metric: rougeL, min: 0.99}\n",
        encoding="utf-8",
    )
    environment = {
        **os.environ,
        "IMPORTED": str(tmp_path / "imported"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path.cwd())]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    # That `evaluate` is told shows that the processes were watched.
    assert set((tmp_path / "imported").read_text().split()) == {"evaluate"}
    told = json.loads(done.stdout)
    assert told["metrics"]["challenger"]["rougeL"] == made.facts["metrics"]["challenger"]["rougeL"]
    assert "macro_f1" not in told["metrics"]["challenger"]
    assert told["gate"]["passed"] is False


def test_what_cannot_be_rescored_is_told(made: Made, tmp_path: Path) -> None:
    store = Store(made.home.store)
    with pytest.raises(UserError, match="holds no evaluation"):
        find_stored("a" * 32, store, lambda run: {})
    with pytest.raises(UserError, match="are not in"):
        find_stored("a" * 32, store, lambda run: {"loraline.fingerprint.evaluation": "b" * 64})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    stored = find_stored(str(made.report.path), store, lambda run: {})
    with pytest.raises(UserError, match="not an empty folder"):
        rescore(stored, None, recipe_folder=made.recipe, output=tmp_path / "full", home=made.home)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"slices": ["colour"]}, "names 'colour', which no test row has"),
        ({"retention": "nowhere.jsonl"}, r"retention.path: there is no file .*nowhere\.jsonl"),
        ({"metrics_folder": "empty"}, "metrics_folder: there is no folder"),
        ({"json_schema": "general.jsonl"}, "json_schema: .* cannot be read as JSON"),
        ({"embedding_model": "metrics"}, "embedding_model: .* is no folder of a model"),
    ],
)
def test_what_is_missing_is_told_in_words(
    made: Made,
    chat_tokens: Tokens,
    tiny: Base,
    challenger: Adapter,
    asked: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(
            made, chat_tokens, tiny, challenger, settings={"gate": [], "retention": None, **asked}
        )
