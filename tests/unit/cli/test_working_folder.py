"""`loraline init` writes a folder that loads, and overwrites nothing."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from tasks.base import resolve_base
from tasks.dataset.source_settings import JsonlSource
from tasks.home import home
from tasks.recipe import load_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "exports" / "Support Chats.jsonl"
    path.parent.mkdir()
    rows = [
        {"instruction": f"Question {n}?", "input": "", "output": f"Answer {n}.", "ticket": n}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_recipe_for_a_file_loads_and_finds_it(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapters"
    assert main(["init", str(folder), "--data", str(data)]) == 0
    path = folder / "recipes" / "support-chats.yaml"
    recipe = load_recipe(path)
    assert recipe.name == "support-chats"
    source = recipe.dataset.sources[0]
    assert isinstance(source, JsonlSource)
    assert (path.parent / source.path).resolve() == data.resolve()
    assert not Path(source.path).is_absolute()
    # The unused column is told, so that a wrong guess is seen.
    text = capsys.readouterr().out
    assert "ticket" in text
    assert "loraline run recipes/support-chats.yaml" in text
    assert ".loraline/" in (folder / ".gitignore").read_text(encoding="utf-8")


def test_the_written_recipe_prepares_rows_on_both_sides(tmp_path: Path, data: Path) -> None:
    from tasks.dataset.work import prepare_dataset
    from tasks.store import Store

    folder = tmp_path / "adapters"
    main(["init", str(folder), "--data", str(data)])
    recipe = load_recipe(folder / "recipes" / "support-chats.yaml")
    dataset = prepare_dataset(
        Store(tmp_path / "store"),
        recipe.dataset,
        salt=recipe.split_salt,
        recipe_folder=folder / "recipes",
    )
    assert dataset.rows["train"] > dataset.rows["test"] > 0


def test_without_data_it_is_the_quickstart_on_a_copied_starter(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    assert main(["init", str(folder)]) == 0
    path = folder / "recipes" / "docstrings.yaml"
    recipe = load_recipe(path)
    shipped = load_recipe(Path(__file__).parents[3] / "recipes" / "quickstart.yaml")
    assert recipe.dataset == shipped.dataset
    assert recipe.training == shipped.training
    base = resolve_base(recipe.base, path, home())
    assert base.path == folder / "starter"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# loraline run recipes/docstrings.yaml\n")
    assert "# base: microsoft/Phi-3-mini-4k-instruct" in text


def test_a_hub_model_is_named_and_no_starter_copied(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "adapters"
    model = "microsoft/Phi-3-mini-4k-instruct"
    assert main(["init", str(folder), "--data", str(data), "--base", model, "--name", "chat"]) == 0
    recipe = load_recipe(folder / "recipes" / "chat.yaml")
    assert recipe.base.model == model
    assert not (folder / "starter").exists()


def test_a_local_base_is_named_relative_to_the_recipe(tmp_path: Path, starter: Path) -> None:
    folder = tmp_path / "adapters"
    assert main(["init", str(folder), "--base", str(starter), "--name", "local"]) == 0
    path = folder / "recipes" / "local.yaml"
    recipe = load_recipe(path)
    assert recipe.base.model.startswith("../")
    # Its context, which is shorter than what a recipe for another model begins with.
    assert recipe.tokenization.max_length == 1024
    assert resolve_base(recipe.base, path, home()).path == starter


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapters"
    main(["init", str(folder)])
    recipe = folder / "recipes" / "docstrings.yaml"
    recipe.write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert main(["init", str(folder)]) == 2
    assert recipe.read_text(encoding="utf-8") == "mine"
    assert str(recipe) in capsys.readouterr().err


def test_another_starter_is_in_the_way_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    (folder / "starter").mkdir(parents=True)
    (folder / "starter" / "config.json").write_text("{}", encoding="utf-8")
    assert main(["init", str(folder)]) == 2
    assert [path.name for path in folder.iterdir()] == ["starter"]


def test_a_repository_keeps_its_readme_and_takes_a_second_recipe(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("ours", encoding="utf-8")
    (folder / ".gitignore").write_text("*.pyc\n", encoding="utf-8")
    assert main(["init", str(folder)]) == 0
    assert "add the line `.loraline/`" in capsys.readouterr().out
    assert main(["init", str(folder), "--data", str(data)]) == 0
    assert (folder / "README.md").read_text(encoding="utf-8") == "ours"
    assert (folder / ".gitignore").read_text(encoding="utf-8") == "*.pyc\n"
    assert len(list((folder / "recipes").glob("*.yaml"))) == 2


def test_a_column_name_with_a_line_break_stays_inside_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "completion": "b", "x\nseed: 7\u2028#": "c"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main(["init", str(tmp_path / "w"), "--data", str(path)]) == 0
    assert load_recipe(tmp_path / "w" / "recipes" / "rows.yaml").seed == 42


def test_a_file_of_no_known_format_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"frage": "a", "antwort": "b"}\n', encoding="utf-8")
    assert main(["init", str(tmp_path / "w"), "--data", str(path)]) == 2
    assert "frage" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_name_that_cannot_be_is_refused_with_one_that_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "w"), "--name", "My Adapter!"]) == 2
    assert "--name my-adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "words"),
    [("./gone", "which does not exist"), ("./empty", "which holds no config.json")],
)
def test_a_base_that_is_no_model_is_refused_before_anything_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["init", str(tmp_path / "w"), "--base", base, "--name", "x"]) == 2
    err = capsys.readouterr().err
    assert f"--base {base} is {tmp_path / base}, {words}" in err
    assert not (tmp_path / "w").exists()
