"""Of a key that stands twice YAML and JSON readers take the last one, and say nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


def twice(path: Path) -> Iterator[str]:
    """The keys that stand twice in one mapping of a file; JSON is YAML, too."""
    todo = list(yaml.compose_all(path.read_text(encoding="utf-8")))
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [str(key.value) for key, _ in node.value]
            yield from (
                f"{key} ({path}:{node.start_mark.line + 1})"
                for key in set(keys)
                if keys.count(key) > 1
            )
            todo += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def test_no_key_stands_twice(files: Any) -> None:
    folder = files.root / "deployments"
    found = [files.root / "compose.yaml", *folder.rglob("*.yaml"), *folder.rglob("*.json")]
    assert len(found) > 12
    assert not [key for path in found for key in twice(path)]


@pytest.mark.parametrize(
    "text",
    ['{"image": "a", "image": "b"}', "a:\n  - <<: {b: 1}\n    c: 2\n    c: 3\n"],
)
def test_a_key_that_stands_twice_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert list(twice(tmp_path / "file"))
    assert json.dumps(yaml.safe_load(text)), "the readers say nothing"
