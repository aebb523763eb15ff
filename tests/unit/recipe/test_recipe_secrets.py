"""Which variables hold a recipe's secrets, and the Secret blocks that stand for them."""

from typing import Any

import pytest

from tasks.recipe_secrets import block_name, secret_variables


@pytest.mark.parametrize(
    ("recipe", "variables"),
    [
        ({}, []),
        ({"dataset": None, "evaluation": [1]}, []),
        ({"dataset": {"sources": [{"type": "sql", "url_variable": "SHOP_URL"}]}}, ["SHOP_URL"]),
        ({"dataset": {"holdout": {"type": "sql", "url_variable": "HELD_URL"}}}, ["HELD_URL"]),
        (
            {"dataset": {"sources": [{"type": "jsonl", "path": "s3://rows/a.jsonl"}, "wrong"]}},
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        ),
        ({"dataset": {"sources": [{"type": "huggingface", "id": "a/b"}]}}, ["HF_TOKEN"]),
        ({"dataset": {"sources": [{"type": "jsonl", "path": "rows.jsonl"}]}}, []),
        ({"base": "meta-llama/Llama-3.2-1B"}, ["HF_TOKEN"]),
        ({"base": {"model": "meta-llama/Llama-3.2-1B", "revision": "main"}}, ["HF_TOKEN"]),
        ({"base": "../models/phi"}, []),
        ({"base": {"model": "~/models/phi"}}, []),
        ({"base": 7}, []),
        ({"evaluation": {"judge": {"url": "http://x"}}}, ["OPENAI_API_KEY"]),
        ({"evaluation": {"judge": {"key_variable": "JUDGE_KEY"}}}, ["JUDGE_KEY"]),
    ],
)
def test_a_recipe_names_the_variables_of_its_secrets(
    recipe: dict[str, Any], variables: list[str]
) -> None:
    assert secret_variables(recipe, {}) == variables


def test_a_store_on_s3_needs_its_keys_whatever_the_recipe_says() -> None:
    assert secret_variables({}, {"LORALINE_STORE": "s3://shared/store"}) == [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ]


def test_a_block_is_named_after_its_variable() -> None:
    assert block_name("SHOP_DATABASE_URL") == "shop-database-url"
