"""Send every alert and every promotion through Prefect's notification blocks that `LORALINE_NOTIFY` names.

One automation a block: it waits for loraline's events and lets the server send them, so that it also sends
what other machines' runs tell. Slack, Teams, PagerDuty, e-mail, a custom webhook: whatever block there is.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.stack.alerts import EVENT
from tasks.errors import UserError
from tasks.promotion.entry import TOLD

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import BlockDocument

VARIABLE = "LORALINE_NOTIFY"
"""Blocks as `type/name`, separated by commas or spaces: `slack-webhook/ops, custom-webhook/pager`."""
PREFIX = "loraline-notify-"
EVENTS = (EVENT, *(f"loraline.{kind}" for kind in TOLD))
SUBJECT = "{{ event.payload.name }}: {{ event.payload.kind }}"
# An alert has its text; all else has the fields of the promotion log.
BODY = (
    "{% if event.payload.text %}{{ event.payload.text }}"
    "{% elif event.payload.kind == 'accepted' %}The promotion log of {{ event.payload.name }} is "
    "damaged, and goes on: accepted by {{ event.payload.actor }}. {{ event.payload.reason }} "
    "What is wrong: {{ event.payload.verification }}{% else %}"
    "The champion of {{ event.payload.name }} is now version {{ event.payload.champion_to or 'none' }}, "
    "before {{ event.payload.champion_from or 'none' }} ({{ event.payload.actor }}). "
    "{{ event.payload.reason }} {{ event.payload.verification }}{% endif %}"
)


def blocks_of(environ: Mapping[str, str]) -> list[str] | None:
    """The blocks that the variable names; None where it is not set, and nothing is to be changed.

    Raises: UserError for what is no `type/name`.
    """
    if VARIABLE not in environ:
        return None
    names = environ[VARIABLE].replace(",", " ").split()
    for name in names:
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(
                f"{VARIABLE} holds {name!r}. Write blocks as type/name, for example "
                "slack-webhook/ops; Prefect's page Blocks shows both."
            )
    return list(dict.fromkeys(names))


def apply_notifications(
    client: "SyncPrefectClient", environ: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Have one automation for each block, and none for those that are named no longer.

    Returns a line for each change, and for each block that cannot be used. An automation that somebody
    switched off stays off.
    """
    changed: list[str] = []
    problems: list[str] = []
    try:
        wanted = blocks_of(environ)
    except UserError as error:
        return [], [str(error)]
    if wanted is None:
        return [], []
    kept = set()
    for block in wanted:
        name = PREFIX + block.replace("/", "-")
        kept.add(name)
        document, problem = _document(client, block)
        if document is None:
            problems.append(problem)
            continue
        changed += _put(client, name, block, document)
    for there in client.read_automations():
        if there.name.startswith(PREFIX) and there.name not in kept:
            client.delete_automation(there.id)
            changed.append(
                f"automation {there.name}: deleted, {VARIABLE} names its block no longer"
            )
    return changed, problems


def _document(client: "SyncPrefectClient", block: str) -> "tuple[BlockDocument | None, str]":
    """The block, or why it cannot notify anybody."""
    from prefect.exceptions import ObjectNotFound

    kind, name = block.split("/")
    try:
        document = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        return None, (
            f"{VARIABLE} names the block {block}, and this server has none: nothing is sent there. "
            "Create it on Prefect's page Blocks (its type and its name, as in the address of its "
            "page), or correct the variable; then deploy again."
        )
    schema = document.block_schema
    if schema is not None and "notify" not in schema.capabilities:
        return None, f"{VARIABLE} names the block {block}, which sends no notifications."
    return document, ""


def _put(
    client: "SyncPrefectClient", name: str, block: str, document: "BlockDocument"
) -> list[str]:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    wanted = AutomationCore(
        name=name,
        description=f"Send loraline's alerts and promotions to {block}.",
        enabled=True,
        trigger=EventTrigger(
            match={"prefect.resource.id": "loraline.model.*"},
            expect=set(EVENTS),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=document.id, subject=SUBJECT, body=BODY)],
    )
    there = next(iter(client.read_automations_by_name(name)), None)
    if there is None:
        client.create_automation(wanted)
        return [f"automation {name}: created, alerts go to {block}"]
    if essence(there) == essence(wanted):
        return []
    client.update_automation(there.id, wanted.model_copy(update={"enabled": there.enabled}))
    return [f"automation {name}: changed"]


def essence(automation: Any) -> dict[str, Any]:
    """What an automation does, without the identities that the server gives its parts."""
    kept = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    return {name: _without_ids(value) for name, value in kept.items()}


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_ids(v) for k, v in value.items() if k != "id" and v is not None}
    return sorted(map(_without_ids, value), key=repr) if isinstance(value, list) else value
