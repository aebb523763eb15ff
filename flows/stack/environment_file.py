"""The stack's own environment, `stack/environment` of the home, read as systemd reads an EnvironmentFile.

Secrets that no shell need have: `loraline up` takes from it what its shell does not set.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flows.stack.settings import folder
from tasks.errors import UserError
from tasks.home import Home

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(
    r"""
    [ \t]*(?:
        '(?P<single>[^']*)'
      | "(?P<double>(?:[^"\\]|\\.)*)"
    )
    | (?P<plain>(?:[^\\]|\\.|\\$)+)
    """,
    re.VERBOSE | re.DOTALL,
)
"""The next piece of a value: what begins with a quote ends with it, anything else goes on to the line's end."""


def environment_file(home: Home) -> Path:
    """Where it lies; it need not exist."""
    return folder(home) / "environment"


def read_environment(path: Path) -> dict[str, str]:
    """Its variables; none where there is no file.

    Raises: UserError for a file that cannot be read, and for a line that is no NAME=value: systemd would
    pass over it, and what it was to give would be missing without a word.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). It gives the stack its secrets, one NAME=value a line: "
            "mend it, or move it away."
        ) from error
    found = {}
    for number, line in _lines(text):
        name, sign, value = line.partition("=")
        if not sign or not _NAME.fullmatch(name.strip()):
            hint = " (without `export`)" if line.startswith("export ") else ""
            # The line itself may be half a secret.
            raise UserError(f"{path}:{number}: this line is no NAME=value{hint}. Correct it.")
        found[name.strip()] = _unquoted(value, f"{path}:{number}")
    return found


def assignments(text: str) -> dict[str, str]:
    """The variables of such a text; what is no assignment is passed over."""
    pairs = (line.partition("=") for _, line in _lines(text))
    return {name.strip(): _unquoted(value, name) for name, sign, value in pairs if sign}


def missing(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What `environ` does not have. A variable that is set there, were it to nothing, counts."""
    return {name: value for name, value in given.items() if name not in environ}


def _lines(text: str) -> list[tuple[int, str]]:
    """Each assignment with its line's number: a backslash at a line's end joins the next one."""
    found: list[tuple[int, str]] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        while line.endswith("\\") and (following := next(lines, None)):
            line = line[:-1] + following[1]
        found.append((number, line.strip()))
    return found


def _unquoted(value: str, where: str) -> str:
    """As systemd has it: quotes around a piece are no part of it, `#` and `&` are signs like any other.

    Raises: UserError for a quote that nothing closes.
    """
    value = value.strip()
    found, position = "", 0
    while position < len(value):
        piece = _VALUE.match(value, position)
        if piece is None or (piece["plain"] or "").lstrip()[:1] in ("'", '"'):
            raise UserError(f"{where}: a quote is not closed. Close it, or leave it away.")
        if piece["single"] is not None:
            found += piece["single"]
        elif piece["double"] is not None:
            found += re.sub(r'\\(["\\`$])', r"\1", piece["double"])
        else:
            found += re.sub(r"\\(.)", r"\1", piece["plain"])
        position = piece.end()
    return found
