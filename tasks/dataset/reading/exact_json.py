"""JSON in which whole numbers stay as they are written, however long they are."""

import json
import math
from typing import Any

import orjson

from tasks.dataset.reading.problem import RowProblem, check_characters

LONG_DIGITS = 19
"""Whole numbers of fewer digits fit into 64 bits; orjson makes floats of those that do not."""
MOST_NESTED = 200
"""Levels of objects and lists in a tool or a call; what writes the rows goes a little deeper."""

_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_LONG = b"0" * LONG_DIGITS


def loads(raw: bytes | str) -> Any:
    """The value.

    Raises: orjson.JSONDecodeError.
    """
    value = orjson.loads(raw)
    # Identifiers of 19 digits and more are rare: only their rows pay for the slower parser.
    told = raw if isinstance(raw, bytes) else raw.encode()
    if _LONG not in told.translate(_DIGITS):
        return value
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        # Thousands of digits.
        raise orjson.JSONDecodeError(str(error), "", 0) from error


def check_values(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what a file of rows cannot hold exactly, in the arguments of a call or a tool's schema.

    Raises: RowProblem.
    """
    if depth > MOST_NESTED:
        raise RowProblem(f"{where} is nested more than {MOST_NESTED} deep")
    if isinstance(value, str):
        check_characters(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RowProblem(f"{where} has the key {key!r}, which is no text")
            check_characters(key, where)
            check_values(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_values(item, where, depth + 1)
    elif isinstance(value, bool | None):
        pass
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise RowProblem(
                f"{where} holds the whole number {_short(value)}, which has more than 64 bits and would "
                "become another one: write it as text"
            )
    elif not isinstance(value, float) or not math.isfinite(value):
        raise RowProblem(f"{where} holds {_short(value)}, which JSON cannot hold: write it as text")


def _short(value: object) -> str:
    # Python refuses to print more than 4,300 digits.
    long = isinstance(value, int) and value.bit_length() > 1000
    shown = "of more than 300 digits" if long else str(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
