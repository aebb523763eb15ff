"""`loraline check` tells what a run would do, and starts none."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli import main
from flows.commands.check import _dataset, _recipe
from flows.recipe_check import RecipeCheck
from tasks.home import home

RECIPE = """\
name: small
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
  split: {{test: 0.3}}
tokenization: {{max_length: 256}}
training:
  peft_config: {{r: 4}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Path:
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(base=tiny_base))
    return path


def test_check_tells_what_a_run_would_do_and_starts_none(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), "--rows", "2", "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["ok"] is True
    assert found["training"]["trainable_parameters"] > 0
    # The words for a person, which stand on standard output without --json.
    for part in ("valid, named small", "rows to train on", "parameters trained", "memory"):
        assert part in err
    assert "qkv_proj" in err
    assert f"loraline run {recipe}" in err
    # Without colours brackets stand around what is trained: an answer with its end-of-turn token.
    assert err.count("«<|end|>»⟧") == 2
    # `run` will find these complete; nothing is registered.
    for stage in ("dataset", "tokenization"):
        assert (Path(found[stage]["path"]) / "manifest.json").is_file()
    assert sorted(p.name for p in home().store.iterdir()) == ["dataset", "tokenization"]
    assert not home().mlflow.exists()


def test_mistakes_that_need_no_model_are_one_answer_with_a_line_each(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "training.peft_config.target_modules=[q_proj, v_proj]",
        "tokenization.max_length=4096",
        "dataset.sources.0.path=gone.jsonl",
    ]
    options = [word for text in settings for word in ("--set", text)]
    assert main(["check", str(recipe), "--rows", "0", "--json", *options]) == 2
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert set(found) == {"ok", "error", "mistakes"}
    assert found["ok"] is False
    assert found["error"] == "\n".join(found["mistakes"])
    for text, word in zip(settings, ("qkv_proj", "1,024", "Beside it lie rows.jsonl"), strict=True):
        (line,) = [line for line in found["mistakes"] if line.startswith(f"--set {text}: ")]
        assert word in line
    assert found["error"] in err
    assert "Traceback" not in err
    # Nothing was prepared for it.
    assert not home().root.exists()


@pytest.mark.long
def test_what_only_the_loaded_model_tells_is_exit_code_2_after_what_stood_before_it(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Files of an inner model lack the outer name `model`, so that the files alone cannot rule it out.
    modules = r"training.peft_config.target_modules='model\.model\.layers\..*proj'"
    assert main(["check", str(recipe), "--rows", "0", "--json", "--set", modules]) == 2
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["ok"] is False
    assert "match no module" in found["error"]
    assert "qkv_proj" in found["error"]
    assert found["dataset"]["rows"]["train"] > 0
    assert "Traceback" not in err


def test_bad_rows_are_told_without_a_model(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (recipe.parent / "rows.jsonl").open("a") as stream:
        stream.write('{"prompt": "x"}\n{broken\n')
    assert main(["check", str(recipe)]) == 2
    err = capfd.readouterr().err
    assert "rows.jsonl:31" in err
    assert "rows.jsonl:32" in err


def test_recipe_data_and_tokens_are_checked_without_torch(recipe: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from flows.recipe_check import RecipeCheck\n"
        "from tasks.home import home\n"
        "check = RecipeCheck(Path(sys.argv[1]), (), home())\n"
        "assert check.preview(2)\n"
        "print(*(m for m in ('torch', 'transformers', 'prefect', 'mlflow') if m in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(recipe)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def test_the_data_are_shown_as_they_were_understood_and_with_what_was_found(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (recipe.parent / "rows.jsonl").open("a") as stream:
        for text in ("Write to jane@acme.org", "Joe is joe@acme.org", "Question 3?"):
            answer = "Answer 3." if text == "Question 3?" else "Noted."
            stream.write(json.dumps({"prompt": text, "completion": answer}) + "\n")
    console = Console(file=StringIO(), width=120)
    facts = _dataset(RecipeCheck(recipe, (), home()), console)

    text = console.file.getvalue()
    assert (
        "from rows.jsonl (jsonl): 33 rows; prompt/completion: user from prompt, "
        "assistant from completion; 1 file" in text
    )
    assert "changed or found: 2 (email found and left in)" in text
    assert "left out: 1 (same prompt and answer)" in text
    assert facts["sources"][0]["mapping"] == {"user": "prompt", "assistant": "completion"}


def test_promoting_by_itself_without_a_gate_is_cautioned_against(recipe: Path) -> None:
    def told(*settings: str) -> tuple[str, list[str]]:
        console = Console(file=StringIO(), width=1000)
        facts = _recipe(RecipeCheck(recipe, settings, home()), console)
        return console.file.getvalue(), facts["warnings"]  # type: ignore[attr-defined]

    automatic, rule = "promotion.policy=automatic", "evaluation.gate=[{metric: rougeL, min: 0.1}]"
    text, (warning,) = told(automatic)
    assert f"warning: {warning}" in text
    assert "evaluation.gate has no rule" in warning
    for settings in ((), (automatic, rule), ("promotion.policy=approval",)):
        assert told(*settings)[1] == []
