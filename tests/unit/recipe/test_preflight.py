"""What a recipe names and this machine does not have: told at once, beside its own mistakes."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.errors import RecipeError
from tasks.preflight import check_recipe

ROOT = Path(__file__).parents[3]
HEAVY = "torch transformers trl peft accelerate datasets evaluate mlflow prefect pandas"
GOOD = """\
name: small
base: ./base
dataset:
  sources:
    - {type: jsonl, path: rows.jsonl}
"""
FIVE = """\
name: small
sede: 3
base: ./base
dataset:
  sources:
    - {type: jsonl, path: rows.jsonl}
    - type: files
      path: chats/*.csv
  holdout: {type: python_source, package: no_such_package}
tokenization:
  max_length: 2048
training:
  peft_config:
    r: sixteen
    target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
"""


@pytest.fixture
def folder(tmp_path: Path, starter: Path) -> Path:
    """A folder with rows and a base, which recipes are written into."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(starter, work / "base")
    (work / "rows.jsonl").write_text('{"prompt": "Question?", "completion": "Answer."}\n')
    return work


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        check_recipe(path, overrides)
    return [line.replace(f"{folder}/", "") for line in str(error.value).splitlines()]


def test_a_recipe_whose_data_and_base_are_here_passes(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    assert check_recipe(folder / "recipe.yaml").recipe.name == "small"


def test_mistakes_of_five_kinds_are_one_message_with_a_line_each(folder: Path) -> None:
    found = mistakes(folder, FIVE)
    assert found == [
        "recipe.yaml:2: sede: there is no such field. Did you mean `seed`?",
        "recipe.yaml:8: dataset.sources.1.path: the pattern chats/*.csv matches no file of rows. "
        "Relative paths start at the recipe's folder; correct it, or give `format`.",
        f"recipe.yaml:9: dataset.holdout.package: no_such_package is not installed in {sys.prefix}. "
        "Install it, name another package, or give a folder with `path`.",
        "recipe.yaml:11: tokenization.max_length: is 2,048 tokens, and the context of ./base is "
        "1,024. Write `max_length: 1024` or less, or choose a base with a longer context.",
        "recipe.yaml:14: training.peft_config.r: must be an integer, not 'sixteen'.",
        "recipe.yaml:15: training.peft_config.target_modules: 5 of 7 names match no module of "
        "./base: q_proj, k_proj, v_proj, gate_proj, up_proj. Its linear modules are: down_proj, "
        "gate_up_proj, o_proj, qkv_proj. This model calls q_proj, k_proj, v_proj: qkv_proj. "
        "This model calls gate_proj, up_proj: gate_up_proj. Write `target_modules: "
        "[down_proj, gate_up_proj, o_proj, qkv_proj]`, or `all-linear`.",
    ]


def test_a_base_that_is_not_there_does_not_hide_the_data_that_is_not(folder: Path) -> None:
    text = GOOD.replace("./base", "./bsae").replace("rows.jsonl", "row.jsonl")
    assert mistakes(folder, text) == [
        "recipe.yaml:2: base: ./bsae is bsae, which does not exist. Correct the path (relative "
        "paths start at the recipe's folder), or name a Hub id.",
        "recipe.yaml:5: dataset.sources.0.path: row.jsonl does not exist. Beside it lie rows.jsonl. "
        "Relative paths start at the recipe's folder; correct it.",
    ]


def test_mistakes_of_overrides_name_the_option(folder: Path) -> None:
    assert mistakes(
        folder,
        GOOD,
        "base=./nowhere",
        "dataset.sources.0.path=gone.jsonl",
    ) == [
        "--set dataset.sources.0.path=gone.jsonl: dataset.sources.0.path: gone.jsonl does not exist. "
        "Beside it lie rows.jsonl. Relative paths start at the recipe's folder; correct it.",
        "--set base=./nowhere: base: ./nowhere is nowhere, which does not exist. Correct the path "
        "(relative paths start at the recipe's folder), or name a Hub id.",
    ]
    (line,) = mistakes(folder, GOOD, "training.peft_config.target_modules=[query]")
    assert line.startswith("--set training.peft_config.target_modules=[query]: training.peft_conf")
    assert "This model calls query: qkv_proj." in line


def test_a_section_that_cannot_be_read_hides_no_other(folder: Path) -> None:
    text = GOOD.replace("./base", "[a]") + "tokenization: 3\ntraining: {peft_config: [r]}\n"
    found = mistakes(folder, text.replace("rows.jsonl", "gone.jsonl"))
    assert [line.split(": ")[0] for line in found] == [f"recipe.yaml:{n}" for n in (2, 5, 6, 7)]


def test_a_default_that_is_too_long_for_the_base_is_told_as_one(folder: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text())
    config["max_position_embeddings"] = 512
    (folder / "base" / "config.json").write_text(json.dumps(config))
    (line,) = mistakes(folder, GOOD)
    assert "tokenization.max_length: is 1,024 tokens, the default, and the context" in line
    assert "Write `max_length: 512` or less" in line


@pytest.mark.parametrize(
    ("peft", "words"),
    [
        ("{target_modules: []}", "target_modules: is empty: nothing would be trained."),
        ("{target_modules: [lm_head]}", "target_modules: names lm_head, the output head"),
        ("{target_modules: embed_tokens}", "1 of 1 names match no module of ./base: embed_tokens."),
        ("{target_modules: '*proj'}", "target_modules: is a string that is no regular expression"),
        (
            "{layers_to_transform: [0, 7], target_modules: [o_proj]}",
            "layers_to_transform: the model has no layer 7; its layers with these modules are 0 to 3.",
        ),
        (
            "{layers_to_transform: 0}",
            "layers_to_transform: PEFT chooses layers only where `target_modules` is a list of "
            "names, and it is the string 'all-linear'. Write `target_modules: [down_proj, gate",
        ),
        ("{exclude_modules: '.*proj'}", "exclude_modules: takes out every module"),
        ("{exclude_modules: '(.*proj'}", "exclude_modules: is no regular expression"),
        ("{modules_to_save: [model]}", "modules_to_save: takes out every module"),
        ("{modules_to_save: ['(']}", "modules_to_save: is no regular expression"),
        (
            "{layers_to_transform: 1, layers_pattern: blocks, target_modules: [o_proj]}",
            "layers_pattern: no number of a layer is found in the modules' names, such as model.lay",
        ),
    ],
)
def test_modules_are_judged_by_the_names_in_the_weights(
    folder: Path, peft: str, words: str
) -> None:
    (line,) = mistakes(folder, f"{GOOD}training:\n  peft_config: {peft}\n")
    assert line.startswith("recipe.yaml:7: training.peft_config.")
    assert words in line


@pytest.mark.parametrize(
    "peft",
    [
        "{}",
        "{target_modules: all-linear}",
        "{target_modules: [qkv_proj, mlp.down_proj]}",
        "{target_modules: [model.layers.0.self_attn.o_proj]}",
        r"{target_modules: 'model\.layers\.[01]\..*(o|qkv)_proj'}",
        "{layers_to_transform: [0, 3], target_modules: [o_proj]}",
        "{exclude_modules: [down_proj]}",
        "{peft_type: IA3, target_modules: [norm], feedforward_modules: []}",
        "{peft_type: PROMPT_TUNING, num_virtual_tokens: 4}",
    ],
)
def test_modules_that_the_base_has_pass(folder: Path, peft: str) -> None:
    (folder / "recipe.yaml").write_text(f"{GOOD}training:\n  peft_config: {peft}\n")
    check_recipe(folder / "recipe.yaml")


def test_nothing_is_said_of_modules_that_loading_renames(folder: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
    modules = "training:\n  peft_config: {target_modules: [gate_up_proj_of_experts]}\n"
    (folder / "recipe.yaml").write_text(GOOD + modules)
    check_recipe(folder / "recipe.yaml")


def test_each_kind_of_source_is_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_URL", raising=False)
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("")
    (folder / "rows.txt").write_text("")
    sources = [
        "{type: files, path: notes}",
        "{type: files, path: rows.txt}",
        "{type: python_source, path: notes}",
        "{type: python_source, path: src}",
        "{type: sql, query: SELECT 1, database: rows.db}",
        "{type: sql, query: SELECT 1, url_variable: NO_SUCH_URL}",
        "{type: files, path: 's3://bucket/rows.jsonl'}",
        "{type: huggingface, id: team/rows}",
        "{type: jsonl, path: gone/rows.jsonl, max_rows: none}",
    ]
    text = GOOD.replace(
        "    - {type: jsonl, path: rows.jsonl}\n", "".join(f"    - {s}\n" for s in sources)
    )
    words = [
        "dataset.sources.0.path: notes holds no file of rows. There are a.txt, which is not read.",
        "dataset.sources.1.path: rows.txt: how the file is written is not known from its name.",
        "dataset.sources.2.path: notes holds no .py file.",
        "dataset.sources.3.path: src is no folder.",
        "dataset.sources.4.database: rows.db does not exist.",
        "dataset.sources.5.url_variable: the environment variable NO_SUCH_URL is not set",
        "dataset.sources.8.max_rows: must be an integer",
    ]
    found = mistakes(folder, text)
    assert len(found) == len(words), found
    for line, word in zip(found, words, strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{type: jsonl, path: '~nobody-here/rows.jsonl'}",
            "path: ~nobody-here/rows.jsonl does not",
        ),
        ("{type: files, path: 'a**b/*.jsonl'}", "path: cannot be looked up ("),
        ("{type: python_source, path: '~nobody-here'}", "path: ~nobody-here is no folder"),
        (
            "{type: sql, query: SELECT 1, database: '~nobody-here/x.db'}",
            "database: ~nobody-here/x.db does not exist",
        ),
    ],
)
def test_what_can_be_no_path_is_a_mistake_and_no_crash(
    folder: Path, source: str, words: str
) -> None:
    (line,) = mistakes(folder, GOOD.replace("{type: jsonl, path: rows.jsonl}", source))
    assert line.startswith(f"recipe.yaml:5: dataset.sources.0.{words}")
    (line,) = mistakes(folder, GOOD.replace("./base", "~nobody-here/base"))
    assert "~nobody-here/base, which does not exist" in line


def test_sources_that_are_here_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS_URL", "sqlite://")
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(folder / "rows.jsonl", folder / "deep" / "er" / "a.jsonl")
    (folder / "deep" / "code.py").write_text("")
    sqlite3.connect(folder / "rows.db").close()
    for source in (
        "{type: files, path: deep}",
        "{type: files, path: 'deep/**/*.jsonl'}",
        "{type: jsonl, path: 'file://" + str(folder / "rows.jsonl") + "'}",
        "{type: python_source, path: deep}",
        "{type: python_source, package: stdlib}",
        "{type: python_source, package: json.decoder}",
        "{type: sql, query: SELECT 1, database: rows.db}",
        "{type: sql, query: SELECT 1, url_variable: ROWS_URL}",
    ):
        text = GOOD.replace("{type: jsonl, path: rows.jsonl}", source)
        (folder / "recipe.yaml").write_text(text)
        check_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda base: (base / "config.json").unlink(), "which holds no config.json"),
        (lambda base: (base / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda base: (base / "model.safetensors").unlink(), "has no .safetensors file"),
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (
            lambda base: (base / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
            ),
            "git lfs pull",
        ),
        (lambda base: os.truncate(base / "model.safetensors", 100_000), "damaged or cut off"),
        (lambda base: os.truncate(base / "model.safetensors", 4), "damaged or cut off"),
        (lambda base: os.truncate(base / "model.safetensors", 40), "damaged or cut off"),
    ],
)
def test_a_base_that_cannot_be_loaded_is_told_at_its_line(folder: Path, damage, words: str) -> None:
    damage(folder / "base")
    (line,) = mistakes(folder, GOOD)
    assert line.startswith("recipe.yaml:2: base: ")
    assert words in line


def snapshot_in_cache(tmp_path: Path, base: Path, commit: str) -> Path:
    """A Hub cache that holds `team/base` at a commit which its branch `main` pointed to."""
    cache = tmp_path / "hub-cache"
    model = cache / "models--team--base"
    shutil.copytree(base, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return cache


def test_a_hub_model_is_judged_by_its_files_in_the_local_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = snapshot_in_cache(tmp_path, folder / "base", "a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    text = GOOD.replace("./base", "team/base")
    wrong = "training:\n  peft_config: {target_modules: [q_proj]}\n"
    (line,) = mistakes(folder, text + wrong)
    assert "1 of 1 names match no module of team/base: q_proj" in line
    # The lock names a commit that is not here: its files may have other modules.
    lock = f"base: {{model: team/base, revision: main, commit: {'b' * 40}}}\n"
    (folder / "recipe.lock").write_text(lock)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    check_recipe(folder / "recipe.yaml")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (line,) = mistakes(folder, text + wrong)
    assert line.startswith(
        f"recipe.yaml:2: base: team/base@{'b' * 40} is not in the local Hub cache"
    )
    assert "HF_HUB_OFFLINE forbids" in line


def test_a_name_that_is_neither_folder_nor_hub_id_is_told(folder: Path) -> None:
    (line,) = mistakes(folder, GOOD.replace("./base", "models/team/base"))
    assert "'models/team/base' is neither a folder nor a Hub id" in line
    (line,) = mistakes(folder, GOOD.replace("./base", "base"))
    assert "base reads as a Hub id, and there is a model folder of that name" in line
    assert "write `base: ./base`" in line


def test_a_lock_that_is_none_is_told_beside_the_rest(folder: Path) -> None:
    (folder / "recipe.lock").write_text("words")
    found = mistakes(folder, GOOD.replace("./base", "team/base").replace("rows", "gone"))
    assert any("recipe.lock: is not a lock file" in line for line in found)
    assert any("gone.jsonl does not exist" in line for line in found)


@pytest.mark.parametrize("name", ["quickstart", "phi-3-mini-lora", "phi-3-mini-qlora"])
def test_the_shipped_recipes_lack_nothing_but_a_teams_data(name: str) -> None:
    try:
        check_recipe(ROOT / "recipes" / f"{name}.yaml")
    except RecipeError as error:
        for line in str(error).splitlines():
            assert "data/" in line or "HF_HUB_OFFLINE" in line


def test_five_mistakes_are_told_within_a_second_and_without_heavy_imports(folder: Path) -> None:
    """Processor time of the whole command, since the wall's depends on what else runs here."""
    path = folder / "recipe.yaml"
    path.write_text(FIVE)

    def once(command: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-P", "-X", "importtime", "-m", "flows.cli", command, str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    for command in ("check", "run"):
        runs = []
        for _ in range(3):
            runs.append(once(command))
            time.sleep(0.1)
        seconds, done = min(runs, key=lambda run: run[0])
        assert done.returncode == 2
        imported = {
            line.rpartition("|")[2].strip().partition(".")[0]
            for line in done.stderr.splitlines()
            if line.startswith("import time:")
        }
        assert "pydantic" in imported
        assert not imported & set(HEAVY.split())
        assert done.stderr.count("recipe.yaml:") == 6
        assert seconds < 1.0
        assert not Path(os.environ["LORALINE_HOME"]).exists()
