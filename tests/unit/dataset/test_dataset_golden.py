"""The dataset's bytes are part of its fingerprint's promise: they change only with OUTPUT_VERSION."""

import hashlib
import json
from pathlib import Path

from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import OUTPUT_VERSION, prepare_dataset
from tasks.store import Store

EXPECTED_VERSION = 5
EXPECTED_SHA256 = {
    "test_copies.npy": "5faeffbb5cb000aacfee949a7024e690602af055751b749a8e8a74c6ae4b9e10",
    "train.jsonl": "39f2eb8b7df687ef9c4240557f5ba7545a83658604b67cce7252694a440c7014",
    "test.jsonl": "bb3a524c8b4673d4afe22e391ab4bcc7acc483a10f55b8c4f6fd8e43fdb090d4",
    "card.json": "b94c394f545cac7b18ae083149964b4db89d2275ebb040a24de338b3b0160020",
    "summary.md": "500fd6d275b0faf349ab750f86ff58efb7d7f2a46fe1712e906a991c367c5bc7",
}

MODULE = '''
class ShoppingList:
    """A list of things to buy.

    It has no second paragraph in any row.
    """

    @property
    def open_items(self):
        """Return what has not been bought yet."""
        # Bought things stay in the list.
        return [item for item in self.items if not item.bought]

def read_list(path):
    """Read a shopping list from a file."""
    with open(path) as stream:
        return ShoppingList(stream.read().splitlines())
'''


def test_the_same_sources_give_the_same_bytes_until_the_output_version_is_raised(
    tmp_path: Path,
) -> None:
    (tmp_path / "src").mkdir()
    for name in ("shop", "market", "store"):
        code = MODULE.replace("shopping", name).replace("buy", f"get at the {name}")
        (tmp_path / "src" / f"{name}.py").write_text(code, encoding="utf-8")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Was heißt {i}?"},
                {"role": "assistant", "content": f"„{i}“"},
            ]
        }
        for i in range(12)
    ]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]])
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    settings = DatasetSettings.model_validate(
        {
            "sources": [
                {"type": "jsonl", "path": "rows.jsonl"},
                {"type": "python_source", "path": "src", "max_code_characters": 80},
            ],
            "split": {"test": 0.3},
        }
    )

    dataset = prepare_dataset(
        Store(tmp_path / "store"), settings, salt="golden", recipe_folder=tmp_path
    )

    actual = {
        name: hashlib.sha256((dataset.path / name).read_bytes()).hexdigest()
        for name in EXPECTED_SHA256
    }
    assert (OUTPUT_VERSION, actual) == (EXPECTED_VERSION, EXPECTED_SHA256), (
        "The dataset's output has other bytes. If that is meant, raise OUTPUT_VERSION in "
        "tasks/dataset/work.py, so that no stored output of the old kind is reused, and copy "
        "the new values to this test."
    )
