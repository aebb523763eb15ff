"""An adapter that is renamed goes on with its registered model, its split and its champion."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


def test_a_renamed_adapter_goes_on_with_its_model_and_its_rows(
    loraline: Any, fresh: Any, tmp_path: Path
) -> None:
    cli = loraline(tmp_path)
    text = (fresh.folder / "recipes" / "small.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    # By default the name is the salt.
    recipe.write_text(text.replace("name: small\n", "name: old\n").replace("    salt: small\n", ""))
    first = cli.json("run", str(recipe))
    assert first["model_version"]["name"] == "old"
    recipe.write_text(
        text.replace(
            "name: small\n", "name: new\nregistration: {model_name: old}\nseed: 7\n"
        ).replace("salt: small", "salt: old")
    )
    second = cli.json("run", str(recipe))
    assert second["exit_code"] == 0, second["stderr"]
    version = second["model_version"]
    assert (version["name"], version["version"]) == ("old", "2")
    before, now = (it["stages"]["dataset"] for it in (first, second))
    assert (now["reused"], now["fingerprint"]) == (True, before["fingerprint"])
    assert {it.name for it in (tmp_path / ".loraline" / "runs").iterdir()} == {"old", "new"}
