"""Take out of a text or a setting what must not leave the house: secrets, and paths of this machine."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from tasks.addresses import without_passwords
from tasks.personal_data.keys import keys

REMOVED = "[removed]"
_SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:pass(?:word|wd|phrase)|secrets?|credentials?|authorization|api_?key|access_?key"
    r"|account_?key|private_?key|bearer)(?:_|$)|^(?:hf_?|hub_?|auth_?|access_?)?token$"
)
_WHOLE_PATH = re.compile(r"(?:file://|[~/\\]|[A-Za-z]:[/\\]).*", re.DOTALL)
# Not what follows a word, a colon, a dot or another slash: `and/or`, `models:/x/1`, `./x`, `https://x`.
_PATH = re.compile(
    r"file://[^\s'\"`<>|)\]]+"
    r"|(?<![\w:/.<~\\])(?:~[\w.-]*|[A-Za-z]:)?(?:[/\\](?=[\w.])[^\s/\\'\"`<>|,;:()\[\]]+)+[/\\]?"
)
_QUERY = re.compile(r"(?<=://)([^\s?#'\"`<>)\]]+)[?#][^\s'\"`<>)\]]+")


def publishable_text(text: str) -> str:
    """`text` without keys, tokens and passwords, with the last name of each absolute path only."""
    for start, stop in sorted(keys(text), reverse=True):
        text = text[:start] + REMOVED + text[stop:]
    # Signed links carry their key in the query.
    text = _QUERY.sub(r"\1", without_passwords(text))
    return _PATH.sub(lambda found: last_name(found[0]), text)


def publishable(value: Any) -> Any:
    """The same for settings: values under names of secrets go, those that are a path keep its last name."""
    if isinstance(value, Mapping):
        return {
            str(key): publishable(item)
            for key, item in value.items()
            if not _SECRET_NAME.search(str(key))
        }
    if isinstance(value, str):
        if _WHOLE_PATH.fullmatch(value) and not value.startswith("//"):
            return last_name(value)
        return publishable_text(value)
    if isinstance(value, Sequence):
        return [publishable(item) for item in value]
    return value


def last_name(path: str) -> str:
    """`/data/team/base` -> `base`."""
    path = path.removeprefix("file://").rstrip("/\\")
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    return "" if name == "~" else name
