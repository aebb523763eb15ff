"""A wrong recipe: every mistake at once, each with its line and a way out."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.errors import RecipeError
from tasks.preflight import check_recipe
from tasks.recipe import load_recipe, read_recipe

ROOT = Path(__file__).parents[3]
HEAD = "base: ./base\ndataset:\n  sources:\n    - {type: jsonl, path: rows.jsonl}\n"


def mistakes(path, *overrides):
    """The lines of the error, without the file's folder."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [line.replace(f"{path.parent}/", "") for line in str(error.value).splitlines()]


def test_a_recipe_with_three_mistakes_reports_three_lines(write_recipe):
    path = write_recipe(
        "sede: 3\n"
        "training:\n"
        "  peft_config:\n"
        "    r: sixteen\n"
        "  training_config:\n"
        "    learning_rat: 1.0e-4\n"
    )
    assert mistakes(path) == [
        "recipe.yaml:6: sede: there is no such field. Did you mean `seed`?",
        "recipe.yaml:9: training.peft_config.r: must be an integer, not 'sixteen'.",
        "recipe.yaml:11: training.training_config.learning_rat: "
        "TRL's SFT configuration has no such field. Did you mean `learning_rate`?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: true\n", "6: seed: must be an integer, not true."),
        ("seed: '3'\n", "6: seed: must be an integer, not '3'."),
        ("seed: -1\n", "6: seed: must be at least 0, not -1."),
        ("seed:\n", "6: seed: must be an integer, not empty (null)."),
        ("training: 3\n", "6: training: must be a mapping of fields, not 3."),
        (
            "training:\n  method: dpoo\n",
            "7: training.method: must be one of sft, pretraining, dpo, orpo, kto, not 'dpoo'. Did you mean `dpo`?",
        ),
        (
            "training:\n  dtype: bfloat\n",
            "7: training.dtype: must be one of auto, bfloat16, float16, float32, not 'bfloat'. "
            "Did you mean `bfloat16`?",
        ),
        (
            "training:\n  lora_alpha: 3\n",
            "7: training.lora_alpha: there is no such field here. "
            "`lora_alpha` belongs under training.peft_config.",
        ),
        (
            "cron: 0 2 * * *\n",
            "6: cron: there is no such field here. `cron` belongs under schedule.",
        ),
        (
            "training:\n  peft_config:\n    bias: some\n",
            "8: training.peft_config.bias: must be one of none, all, lora_only, not 'some'.",
        ),
        (
            "training:\n  peft_config: {r: 0}\n",
            "7: training.peft_config.r: must be at least 1, not 0.",
        ),
        (
            "training:\n  peft_config: {target_modules: [q_proj, 3]}\n",
            "7: training.peft_config.target_modules: item 2 must be a text, not 3.",
        ),
        (
            "training:\n  training_config: {lr_scheduler_type: cosin}\n",
            "7: training.training_config.lr_scheduler_type: must be one of linear, cosine, "
            "cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, "
            "reduce_lr_on_plateau, cosine_with_min_lr, cosine_warmup_with_min_lr, "
            "warmup_stable_decay, greedy, not 'cosin'. Did you mean `cosine`?",
        ),
        (
            "training:\n  peft_config: {bias: lora-only}\n",
            "7: training.peft_config.bias: must be one of none, all, lora_only, not 'lora-only'. "
            "Did you mean `lora_only`?",
        ),
        (
            "training:\n  peft_config: {init_lora_weights: gausian}\n",
            "7: training.peft_config.init_lora_weights: must be one of gaussian, eva, olora, pissa, "
            "corda, loftq, orthogonal, mica, lora_ga or a text that matches ^pissa_niter_[0-9]+$ or true or "
            "false, not 'gausian'. Did you mean `gaussian`?",
        ),
        (
            "training:\n  peft_config: {peft_type: LORRA}\n",
            "7: training.peft_config.peft_type: PEFT has no type 'LORRA'. Did you mean `LORA`?",
        ),
        (
            "training:\n  peft_config: {peft_type: XLORA}\n",
            "7: training.peft_config.peft_type: XLORA is not supported: "
            "it mixes adapters that exist already.",
        ),
        (
            "training:\n  peft_config: {peft_type: LOHA, lora_alpha: 8}\n",
            "7: training.peft_config.lora_alpha: PEFT's LOHA has no such field. "
            "Did you mean `alpha`?",
        ),
        (
            "training:\n  peft_config: {init_lora_weights: corda, corda_config: {cache_file: x.pt}}\n",
            "7: training.peft_config.corda_config: `cache_file` is read as a pickle, which may run any "
            "code. Leave it out: the rows are looked at anew.",
        ),
        (
            "training:\n  peft_config: {loftq_config: {bits: 4}}\n",
            "7: training.peft_config.loftq_config: has no field `bits`; "
            "it has `loftq_bits`, `loftq_iter`.",
        ),
        (
            "training:\n  training_config: {learning_rate: .inf}\n",
            "7: training.training_config.learning_rate: must be a finite number, not inf.",
        ),
        (
            "training:\n  training_config: {learning_rate: 0}\n",
            "7: training.training_config.learning_rate: must be above 0, not 0.",
        ),
        (
            "training:\n  training_config: {lr_scheduler_kwargs: {num_cycles: 2}}\n",
            "7: training.training_config.lr_scheduler_kwargs: needs `lr_scheduler_type` beside it.",
        ),
        (
            "training:\n  training_config: {lr_scheduler_type: cosine_with_min_lr}\n",
            "7: training.training_config.lr_scheduler_type: `cosine_with_min_lr` needs "
            "`lr_scheduler_kwargs: {min_lr_rate: 0.1}` beside it.",
        ),
        (
            "training:\n  training_config: {seed: 7}\n",
            "7: training.training_config.seed: is not set here (7): write `seed:` at the top of the "
            "recipe; it is the seed of the whole run.",
        ),
        (
            "evaluation:\n  gate:\n    - {metric: rougel, min: 0.1}\n",
            "8: evaluation.gate.0.metric: must be one of loss, perplexity, token_accuracy, "
            "exact_match, rouge1, rouge2, rougeL, rougeLsum, bleu, chrf, stop_rate, mean_length, "
            "preference_accuracy, preference_accuracy_per_token, token_f1, length_ratio, repetition, "
            "distinct_1, distinct_2, accuracy, macro_f1, json_validity, schema_match, "
            "embedding_similarity, judge, not 'rougel'. Did you mean `rougeL`?",
        ),
    ],
)
def test_each_kind_of_mistake_has_its_line_and_its_words(write_recipe, text, line):
    assert mistakes(write_recipe(text)) == [f"recipe.yaml:{line}"]


def test_missing_sections_are_named_with_what_they_are(write_recipe):
    found = mistakes(write_recipe(head="seed: 1\n"))
    assert [line.partition(" is missing")[0] for line in found] == [
        "recipe.yaml:1: name:",
        "recipe.yaml:1: base:",
        "recipe.yaml:1: dataset:",
    ]
    assert "Name of the adapter" in found[0]


def test_a_misspelt_field_of_a_source_is_compared_with_that_source(write_recipe):
    head = (
        "name: test\nbase: ./base\ndataset:\n  sources:\n"
        "    - type: python_source\n      pakage: json\n"
        "    - type: jsnl\n      path: x\n"
        "    - path: x\n"
    )
    assert mistakes(write_recipe(head=head)) == [
        "recipe.yaml:6: dataset.sources.0.pakage: there is no such field. Did you mean `package`?",
        "recipe.yaml:7: dataset.sources.1: `type` must be one of files, jsonl, huggingface, sql, python_source, not 'jsnl'. "
        "Did you mean `jsonl`?",
        "recipe.yaml:9: dataset.sources.2: `type` is missing: it says what kind this is.",
    ]


def test_a_secret_is_refused_without_repeating_it(write_recipe):
    path = write_recipe("training:\n  training_config: {hub_token: hf_very_secret}\n")
    (line,) = mistakes(path)
    assert "hf_very_secret" not in line
    assert "hf auth login" in line


def test_a_field_set_twice_is_a_mistake_that_names_both_lines(write_recipe):
    path = write_recipe("training:\n  peft_config:\n    r: 8\n    bias: none\n    r: 16\n")
    (line,) = mistakes(path)
    assert line.startswith("recipe.yaml:10: training.peft_config.r: is set twice, first at ")
    assert line.endswith("recipe.yaml:8. Keep one.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [1\nbase: x\n", "recipe.yaml:2: is not YAML: "),
        ("name: a\n\tbase: x\n", "recipe.yaml:2: is not YAML: "),
        ("name: a\n b: x\n", "recipe.yaml:2: is not YAML: "),
        ("name: 'a\n", "recipe.yaml:2: is not YAML: "),
        ("name: a\n---\nname: b\n", "recipe.yaml:2: is not YAML: expected a single document"),
        ("name: a\x07\n", "recipe.yaml: is not YAML: "),
        ("", "recipe.yaml:1: is empty. A recipe needs at least `name`, `base` and `dataset`"),
        ("# only a comment\n", "recipe.yaml:1: is empty."),
        (
            "- a\n- b\n",
            "recipe.yaml:1: a recipe is a mapping of sections (`name: ...`), not a list",
        ),
        ("just words\n", "recipe.yaml:1: a recipe is a mapping of sections (`name: ...`), not the"),
    ],
)
def test_what_is_no_recipe_at_all_is_one_line(write_recipe, text, words):
    (line,) = mistakes(write_recipe(head=text))
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0x_\n", ":6: seed: '0x_' is no int. Write a text in quotes."),
        ("seed: !!int eight\n", ":6: seed: 'eight' is no int. Write a text in quotes."),
        ("seed: !!bool maybe\n", ":6: seed: 'maybe' is no bool. Write a text in quotes."),
        (f"seed: {'[' * 3000}\n", ": is nested too deep to be read."),
    ],
)
def test_a_value_that_yaml_takes_for_what_it_is_not_is_a_mistake_with_its_line(
    write_recipe, text, words
):
    path = write_recipe(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert f"{path}{words}" in str(refused.value)


def test_the_home_of_an_unknown_user_is_a_file_that_is_not_there():
    with pytest.raises(RecipeError, match=r"~nobody-here/x.yaml: there is no such file"):
        check_recipe(Path("~nobody-here/x.yaml"))


def test_tabs_are_named_as_the_cause(write_recipe):
    (line,) = mistakes(write_recipe("training:\n\tdtype: auto\n"))
    assert line.startswith("recipe.yaml:7: is not YAML")
    assert line.endswith("Indent with spaces, never with tabs.")


def test_python_objects_and_self_references_are_refused(write_recipe):
    path = write_recipe(
        "registration: &here\n  tags: {a: !!python/name:os.system x}\n  description: *here\n"
    )
    found = mistakes(path)
    assert any("recipe.yaml:7: registration.tags.a: the YAML tag" in line for line in found)
    assert any("contains itself through an alias" in line for line in found)


def test_a_missing_file_names_its_neighbours(write_recipe):
    present = write_recipe()
    with pytest.raises(RecipeError, match=r"recpe\.yaml: there is no such file.*recipe\.yaml"):
        load_recipe(present.with_name("recpe.yaml"))


def test_a_folder_and_a_binary_file_are_not_recipes(tmp_path):
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        load_recipe(tmp_path / "a.yaml")


def test_numbers_are_read_as_yaml_1_2_reads_them(write_recipe):
    path = write_recipe(
        "training:\n  training_config:\n    learning_rate: 5e-6\n    weight_decay: 5.0e-06\n"
        "registration:\n  tags: {released: 2026-01-31, enabled: 'yes'}\n  description: on\n"
    )
    recipe = load_recipe(path)
    assert recipe.training.training_config == {"learning_rate": 5e-6, "weight_decay": 5e-6}
    assert recipe.registration.tags == {"released": "2026-01-31", "enabled": "yes"}
    assert recipe.registration.description == "on"


def test_anchors_and_merge_keys_work_and_what_is_written_here_wins(write_recipe):
    path = write_recipe(
        "evaluation:\n  gate:\n    - &rule {metric: rougeL, against: base, min_gain: 0.1}\n"
        "    - {<<: *rule, metric: chrf}\n    - {min_gain: 0.2, <<: [*rule]}\n"
    )
    rules = load_recipe(path).evaluation.gate
    assert [(rule.metric, rule.min_gain) for rule in rules] == [
        ("rougeL", 0.1),
        ("chrf", 0.1),
        ("rougeL", 0.2),
    ]


def test_a_byte_order_mark_is_no_mistake(write_recipe):
    path = write_recipe()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path).name == "test"


def test_overrides_replace_add_and_reach_into_lists(write_recipe):
    recipe = load_recipe(
        write_recipe(),
        (
            "training.peft_config.r=8",
            "training.peft_config.target_modules=[qkv_proj, o_proj]",
            "training.training_config={learning_rate: 1e-3}",
            "dataset.sources.0.path=other.jsonl",
            "base.revision=v2",
            "registration.description=a = b",
            "schedule=null",
        ),
    )
    assert recipe.training.peft_config == {"r": 8, "target_modules": ["qkv_proj", "o_proj"]}
    assert recipe.training.training_config == {"learning_rate": 0.001}
    assert recipe.dataset.sources[0].path == "other.jsonl"
    assert (recipe.base.model, recipe.base.revision) == ("./base", "v2")
    assert recipe.registration.description == "a = b"


def test_mistakes_of_overrides_name_the_override_beside_those_of_the_file(write_recipe):
    assert mistakes(
        write_recipe("sede: 1\n"),
        "training.peft_config.rr=8",
        "nonsense",
        "=3",
        "training..r=3",
        "dataset.sources.4.path=x",
        "name.first=x",
        "training.peft_config.bias=]",
    ) == [
        "recipe.yaml:6: sede: there is no such field. Did you mean `seed`?",
        "--set nonsense: write it as `--set section.field=value`.",
        "--set =3: write it as `--set section.field=value`.",
        "--set training..r=3: write it as `--set section.field=value`.",
        "--set dataset.sources.4.path=x: dataset.sources is a list of 1; name an item as "
        "dataset.sources.0.",
        "--set name.first=x: name is a single value; it has no `first`.",
        "--set training.peft_config.bias=]: is not YAML: while parsing a block node, "
        "expected the node content, but found ']'.",
        "--set training.peft_config.rr=8: training.peft_config.rr: PEFT's LORA has no such field.",
    ]


def test_a_mistake_inside_a_list_item_names_its_override(write_recipe):
    assert mistakes(write_recipe(), "dataset.sources.0.group=3") == [
        "--set dataset.sources.0.group=3: dataset.sources.0.group: must be a text, not 3."
    ]


def test_a_merge_key_that_names_no_mapping_is_a_mistake(write_recipe):
    assert mistakes(write_recipe("registration:\n  <<: [words]\n")) == [
        "recipe.yaml:7: registration: `<<` merges mappings, and this is none."
    ]


def test_an_override_repairs_what_the_file_has_wrong(write_recipe):
    recipe = load_recipe(write_recipe("seed: many\n"), ("seed=3",))
    assert recipe.seed == 3


def test_the_shorthand_and_the_mapping_of_base_are_one(write_recipe):
    short = load_recipe(write_recipe())
    long = load_recipe(
        write_recipe(head="name: test\n" + HEAD.replace("./base", "{model: ./base}"))
    )
    assert short == long


def test_a_valid_recipe_has_no_warnings(write_recipe):
    loaded = read_recipe(write_recipe())
    assert loaded.warnings == ()
    assert loaded.recipe.split_salt == "test"


def test_loading_takes_under_a_second_and_imports_nothing_heavy(write_recipe):
    """Processor time of a whole interpreter, since the wall's depends on what else runs here."""
    wrong = write_recipe("sede: 1\ntraining:\n  peft_config: {rr: 8}\n")
    code = (
        "import sys; from pathlib import Path; from tasks.recipe import load_recipe\n"
        "try: load_recipe(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "heavy = 'torch transformers trl peft accelerate datasets evaluate mlflow prefect pandas'\n"
        "print('loaded:', [name for name in heavy.split() if name in sys.modules])"
    )

    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, str(wrong)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return spent, done

    runs = []
    for _ in range(3):
        runs.append(once())
        time.sleep(0.1)
    seconds, done = min(runs, key=lambda run: run[0])
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[-1] == "loaded: []"
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("name", "proposal"),
    [("My Adapter", "my-adapter"), ("-x", "x"), ("ÄÖ", "adapter"), ("n" * 70, "n" * 63)],
)
def test_a_name_that_cannot_be_is_refused_in_words_with_one_that_can(write_recipe, name, proposal):
    (line,) = mistakes(write_recipe(head=f"name: {name}\n{HEAD}"))
    assert line.startswith(
        "recipe.yaml:1: name: a name has lower case letters, digits, dots, dashes and underscores "
        "only, begins with a letter or a digit, and has at most 63 characters; this is "
    )
    assert line.endswith(f"How about `{proposal}`?")
    assert load_recipe(write_recipe(head=f"name: {proposal}\n{HEAD}")).name == proposal


def test_every_pattern_of_the_settings_is_told_in_words():
    from tasks.recipe_mistakes import _PATTERNS
    from tasks.recipe_schema import recipe_schema

    def patterns(node):
        if isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                yield node["pattern"]
            for inner in node.values():
                yield from patterns(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from patterns(inner)

    settings = {name: part for name, part in recipe_schema()["$defs"].items() if "Source" in name}
    top = recipe_schema()["properties"]["name"]
    assert set(patterns([settings, top])) <= set(_PATTERNS)
