"""What is wrong with one row: raised where it is found, reported by whoever knows the row's place."""

from typing import Any


class RowProblem(Exception):
    """What is wrong with one row, in words that follow `file:line: `."""


def kind_of(value: object) -> str:
    """A JSON value's kind in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def text_of(row: dict[str, Any], column: str, prefix: str = "") -> str:
    """The text of a column, which must hold some.

    Raises: RowProblem.
    """
    where = prefix + column
    if column not in row:
        raise RowProblem(f"no {where}")
    value = row[column]
    if value is None:
        raise RowProblem(f"{where} is null")
    if not isinstance(value, str):
        raise RowProblem(f"{where} must be text")
    if not value.strip():
        raise RowProblem(f"{where} is empty")
    check_characters(value, where)
    return value


def check_characters(text: str, where: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no file can hold.

    Raises: RowProblem.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{where} has half of a surrogate pair (position {error.start}), which is no character"
        ) from error


def list_of(row: dict[str, Any], column: str) -> list[Any]:
    """The list in a column; tables of text (CSV, SQL) hold it as JSON.

    Raises: RowProblem.
    """
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, column)
    if not isinstance(value, list):
        raise RowProblem(f"{column} is null" if value is None else f"{column} must be a list")
    return value


def parsed(text: str, where: str) -> Any:
    """The JSON value that a text holds.

    Raises: RowProblem.
    """
    import orjson

    # It says what is wrong with a row by this module.
    from tasks.dataset.reading import exact_json

    try:
        return exact_json.loads(text)
    except orjson.JSONDecodeError as error:
        raise RowProblem(
            f"{where} holds broken JSON at column {error.colno} ({error.msg})"
        ) from error
