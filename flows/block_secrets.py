"""Secrets of a recipe from Prefect's Secret blocks, where the environment does not have them.

A recipe names environment variables and holds no secret. What a worker's environment lacks is looked for in
the Secret block of the same name in Prefect's spelling: `SHOP_DATABASE_URL` in `shop-database-url`.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound

from tasks.errors import LoralineError, ServerAway, UserError
from tasks.files import expanded
from tasks.outage import SECONDS_BETWEEN, bridged, is_outage
from tasks.recipe_file import apply_override, read_document
from tasks.recipe_secrets import OPTIONAL, block_name, secret_variables

_log = logging.getLogger(__name__)


@contextmanager
def secrets_of(recipe: Path, overrides: tuple[str, ...] = ()) -> Iterator[None]:
    """For the block, put what the environment lacks into it: this process's, and its workers'.

    Raises, where the variable is needed for certain: UserError for a block that holds no text; ServerAway when
    Prefect does not answer. A block that is not there is no mistake: whoever needs the variable says so.
    """
    with taken_from_blocks(_named(recipe, overrides)):
        yield


@contextmanager
def taken_from_blocks(variables: Iterable[str]) -> Iterator[None]:
    """The same for variables by name. Raises: as `secrets_of`."""
    found = {}
    for variable in variables:
        if not os.environ.get(variable) and (value := _value(variable)) is not None:
            found[variable] = value
            _log.info("%s comes from the Secret block %s", variable, block_name(variable))
    os.environ.update(found)
    try:
        yield
    finally:
        for variable in found:
            os.environ.pop(variable, None)


def _named(recipe: Path, overrides: tuple[str, ...]) -> list[str]:
    # A recipe that cannot be read is refused with all its mistakes by whoever checks it.
    with suppress(LoralineError):
        document = read_document(expanded(recipe))
        for override in overrides:
            apply_override(document, override)
        return secret_variables(document.data)
    return []


def _value(variable: str) -> str | None:
    name, optional = block_name(variable), variable in OPTIONAL
    try:
        stored = bridged(
            lambda: _read(name),
            doing=f"ask Prefect for the Secret block {name}",
            seconds=() if optional else SECONDS_BETWEEN,
        )
    except ObjectNotFound:
        return None
    except Exception as error:
        if is_outage(error) and not optional:
            # "Not set" would be a person's mistake, which nobody repeats.
            raise ServerAway(
                f"Prefect could not be asked for the Secret block {name!r}, which may hold {variable}: "
                f"{error}. Check that its server runs, then run the recipe again."
            ) from error
        _log.warning("Prefect could not be asked for the Secret block %s: %s", name, error)
        return None
    value = stored.data.get("value")
    if not isinstance(value, str) or not value:
        told = (
            f"The Secret block {name!r} holds no text, and the variable {variable} is taken from it. "
            "Write its value as a plain text, or set the variable on the worker."
        )
        if not optional:
            raise UserError(told)
        _log.warning("%s Going on without it", told)
        return None
    return value


def _read(name: str) -> BlockDocument:
    with get_client(sync_client=True) as client:
        return client.read_block_document_by_name(name, "secret", include_secrets=True)
