"""The model card: what the Hub reads, what a person reads, and what neither may see."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.export.exporting import export_version
from tasks.export.publishable import publishable, publishable_text

TOKEN = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"


@pytest.fixture(scope="module")
def card(project: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("card") / "adapter"
    export_version(project.tracker, "models:/tiny/1", to="peft", output=output)
    return (output / "README.md").read_text()


def test_the_front_matter_is_the_hubs_with_metrics_as_model_index(card: str) -> None:
    from huggingface_hub import ModelCard

    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "base"
    assert front["base_model_relation"] == "adapter"
    assert front["library_name"] == "peft"
    assert {"lora", "loraline"} <= set(front["tags"])
    (model,) = front["model-index"]
    assert model["name"] == "tiny"
    (result,) = model["results"]
    assert result["task"] == {"type": "text-generation"}
    values = {metric["name"]: (metric["type"], metric["value"]) for metric in result["metrics"]}
    assert values["rougeL"] == ("rouge", 0.4)
    assert values["stop_rate"] == ("stop_rate", 1.0)
    # The Hub refuses a card with a NaN.
    assert "broken" not in values
    # The Hub's own client reads it back.
    read = ModelCard(card).data
    assert {entry.metric_name for entry in read.eval_results or []} == set(values)


def test_a_person_finds_metrics_verdict_counts_and_the_recipe(card: str) -> None:
    assert "# tiny, version 1" in card
    assert "It belongs on" in card
    assert "| metric | base | this version |" in card
    assert "| rougeL | 0.1 | 0.4 |" in card
    assert "The gate let this version through." in card
    assert "rougeL grows" in card
    assert "| train rows | 1,234 |" in card
    assert "| dropped (duplicate) | 7 |" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["seed"] == 7
    assert recipe["training"]["peft_config"] == {"r": 4, "lora_alpha": 8}
    assert recipe["training"]["training_config"]["learning_rate"] == 0.004


def test_no_secret_and_no_path_of_this_machine_is_on_it(card: str, project: Any) -> None:
    for word in ("hunter2secret", TOKEN, "whatever-it-is", "hub_token", "api_key", "db.internal"):
        assert word not in card
    for path in ("/srv/", "/home/ada", str(project.home.root.parent), str(Path.cwd())):
        assert path not in card
    assert "output_dir: out" in card
    assert "metrics_folder: metrics" in card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /home/ada/rows.jsonl, please", "see rows.jsonl, please"),
        ("from ~/data/rows.jsonl", "from rows.jsonl"),
        (r"C:\Users\ada\rows.jsonl", "rows.jsonl"),
        ("file:///mnt/rows.jsonl", "rows.jsonl"),
        ("(/mnt/data/rows)", "(rows)"),
        ("https://ada:pa55word9@host/x", "https://host/x"),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x"),
        (f"with {TOKEN}.", "with [removed]."),
    ],
)
def test_what_must_not_leave_is_taken_out(text: str, shown: str) -> None:
    assert publishable_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "precision and/or recall",
        "models:/tiny/1",
        "./base and ../examples/starter",
        "https://huggingface.co/team/model",
        "microsoft/Phi-3-mini-4k-instruct",
        "</s> and <|end|>",
        "3 / 4",
    ],
)
def test_what_only_looks_like_a_path_stays(text: str) -> None:
    assert publishable_text(text) == text
    assert publishable(text) == text


def test_settings_lose_values_under_names_of_secrets_and_keep_those_that_only_sound_so() -> None:
    settings = {
        "max_new_tokens": 64,
        "tokenizer": {"pad_token": "<pad>", "add_eos_token": True},
        "token": "x",
        "password": "x",
        "aws_secret_access_key": "x",
        "paths": ["/a b/c d", "./x"],
        "nothing": None,
    }
    assert publishable(settings) == {
        "max_new_tokens": 64,
        "tokenizer": {"pad_token": "<pad>", "add_eos_token": True},
        "paths": ["c d", "./x"],
        "nothing": None,
    }
