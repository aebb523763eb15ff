"""What the section `evaluation` names and is not here is told by `check`, with its line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RecipeError
from tasks.evaluation.files import find_files
from tasks.evaluation.settings import EvaluationSettings
from tasks.preflight import check_recipe

HEAD = """\
name: small
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
evaluation:
"""


@pytest.fixture
def recipe(tmp_path: Path, starter: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
        path = tmp_path / "recipe.yaml"
        path.write_text(HEAD.format(base=starter) + text, encoding="utf-8")
        return path

    return write


def mistake(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        check_recipe(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  retention: lost.jsonl\n", "recipe.yaml:7: evaluation.retention: there is no file"),
        (
            "  retention: {path: lost.jsonl}\n",
            "recipe.yaml:7: evaluation.retention.path: there is no file",
        ),
        (
            "  metrics_folder: lost\n",
            "recipe.yaml:7: evaluation.metrics_folder: there is no folder",
        ),
        ("  json_schema: lost.json\n", "recipe.yaml:7: evaluation.json_schema: "),
        ("  embedding_model: lost\n", "recipe.yaml:7: evaluation.embedding_model: "),
    ],
)
def test_what_is_not_here_is_told_with_its_line(recipe: Any, text: str, words: str) -> None:
    assert words in mistake(recipe(text))


def test_the_harness_is_refused_where_it_is_not_installed(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "tasks.evaluation.files.find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    told = mistake(recipe("  lm_eval: {tasks: [arc_easy]}\n"))
    assert "recipe.yaml:7: evaluation.lm_eval: the package lm_eval is not installed here" in told
    assert "pip install lm_eval" in told


MODULE = """\
import datasets
import evaluate


class Tone(evaluate.Metric):
    pass
"""


def test_rules_on_own_metrics_need_their_module(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tone.py").write_text(MODULE, encoding="utf-8")
    rule = "  metrics_folder: mine\n  gate:\n    - {metric: custom/tune, min: 0.1}\n"
    assert "recipe.yaml:9: evaluation.gate.0.metric: " in mistake(recipe(rule))
    assert check_recipe(recipe(rule.replace("tune", "tone"))).recipe.evaluation.gate


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"gate": [{"metric": "accuracy", "min": 0.5}]}, "add it to `metrics`"),
        ({"gate": [{"metric": "judge", "min": 0.5}]}, "it needs `judge`"),
        ({"gate": [{"metric": "schema_match", "min": 0.5}]}, "it needs `json_schema`"),
        ({"gate": [{"metric": "custom/mine", "min": 0.5}]}, "no `metrics_folder`"),
        ({"metrics": ["accuracy", "accuracy"]}, "stands in it twice"),
        ({"judge": {"url": "ftp://x", "model": "m"}}, "url"),
    ],
)
def test_a_rule_on_what_is_not_measured_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationSettings.model_validate(section)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strng"}, "'strng' is not valid"),
        (
            {"properties": {"a": {"pattern": "("}}},
            r"is no JSON Schema: '(' is not a 'regex' (at $.",
        ),
        ({"$ref": "other.json"}, "refers to 'other.json', which is not in it"),
        ({"anyOf": [{"$ref": "#/$defs/gone"}], "$defs": {}}, "refers to '#/$defs/gone'"),
    ],
)
def test_a_schema_that_nothing_can_be_held_to_is_told_before_anything_runs(
    recipe: Any, tmp_path: Path, schema: Any, words: str
) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(schema), encoding="utf-8")
    told = mistake(recipe("  json_schema: answer.json\n"))
    assert "recipe.yaml:7: evaluation.json_schema: " in told
    assert words in told


def test_a_schema_may_refer_to_itself_and_name_a_property_as_keywords_are_named(
    recipe: Any, tmp_path: Path
) -> None:
    schema = {
        "properties": {"$ref": {"$ref": "#/$defs/text"}, "more": {"$ref": "#"}},
        "const": {"$ref": "nowhere"},
        "$defs": {"text": {"type": "string"}},
    }
    (tmp_path / "answer.json").write_text(json.dumps(schema), encoding="utf-8")
    check_recipe(recipe("  json_schema: answer.json\n"))


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        (
            "my-metric.py",
            MODULE,
            "my-metric.py: a metric's name has letters, digits and underscores",
        ),
        (
            "tone.py",
            MODULE.replace("\nimport evaluate", ", evaluate"),
            "tone.py:1: `import datasets, ",
        ),
        ("tone.py", "import evaluate\nclass Tone(:\n", "tone.py:2: is no Python"),
        (
            "tone.py",
            "import nowhere_at_all\n" + MODULE,
            "imports `nowhere_at_all`, which is not inst",
        ),
        (
            "tone.py",
            "from ._words import X\n" + MODULE,
            "tone.py:1: `from ._words import X`: there is no",
        ),
        ("tone.py", "from . import words\n" + MODULE, "imported by `from .helper import name`"),
        ("tone.py", "import evaluate\n", "holds no class that derives from evaluate.Metric"),
    ],
)
def test_a_metric_module_that_could_not_be_loaded_is_told_before_anything_runs(
    recipe: Any, tmp_path: Path, name: str, source: str, words: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(source, encoding="utf-8")
    told = mistake(recipe("  metrics_folder: mine\n"))
    assert "recipe.yaml:7: evaluation.metrics_folder: " in told
    assert words in told


def test_what_lies_beside_a_metric_is_part_of_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "_words.py").write_text("X = 1\n", encoding="utf-8")
    (folder / "tone.py").write_text("from ._words import X\n" + MODULE, encoding="utf-8")
    settings = EvaluationSettings(metrics_folder="mine")
    before = find_files(settings, tmp_path).digests
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "tone.pyc").write_bytes(b"made by Python")
    assert find_files(settings, tmp_path).digests == before
    (folder / "_words.py").write_text("X = 2\n", encoding="utf-8")
    assert find_files(settings, tmp_path).digests != before
