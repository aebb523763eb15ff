"""What we remember on the Prefect server beside what Prefect itself keeps: variables that hold a mapping."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def recall(client: "SyncPrefectClient", name: str) -> dict[str, Any]:
    """What the variable holds; nothing where there is none."""
    there = client.read_variable_by_name(name)
    return there.value if there and isinstance(there.value, dict) else {}


def remember(client: "SyncPrefectClient", name: str, value: dict[str, Any]) -> None:
    """Have the variable hold this. Nothing is written twice."""
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    there = client.read_variable_by_name(name)
    if there is None:
        client.create_variable(VariableCreate(name=name, value=value))
    elif there.value != value:
        client.update_variable(VariableUpdate(name=name, value=value))
