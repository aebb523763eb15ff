"""Tool calls and the tools themselves, in the one form that chat templates want."""

from typing import Any

from tasks.dataset.reading.exact_json import check_values
from tasks.dataset.reading.problem import RowProblem, parsed


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """An assistant turn's calls: `{"type": "function", "id"?, "function": {"name", "arguments"}}` each.

    `arguments` becomes an object: OpenAI writes it as JSON text, templates print objects.

    Raises: RowProblem.
    """
    if isinstance(value, str):
        value = parsed(value, where)
    if not isinstance(value, list):
        raise RowProblem(f"{where} must be a list")
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(value)]


def tools(value: Any, where: str = "tools") -> tuple[dict[str, Any], ...]:
    """The functions that a row's assistant may call, as JSON schemas in OpenAI's envelope.

    Raises: RowProblem.
    """
    if isinstance(value, str) and value:
        value = parsed(value, where)
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise RowProblem(f"{where} must be a list of function descriptions")
    return tuple(_tool(tool, f"{where}[{i}]") for i, tool in enumerate(value))


def without_nulls(value: Any) -> Any:
    """`value` without the keys that are null: tables fill in every key that some other row has."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowProblem(f"{where} must be an object")
    function = call.get("function") or {key: call.get(key) for key in ("name", "arguments")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem(f"{where} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{where}.arguments") if arguments.strip() else {}
    check_values(arguments, f"{where}.arguments")
    if not isinstance(arguments, dict | None):
        raise RowProblem(f"{where}.arguments must be an object, or one as JSON text")
    result: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    # In a table of calls every call has every other's arguments, as nulls.
    result["function"] = {"name": function["name"], "arguments": without_nulls(arguments or {})}
    check_values(result, where)
    return result


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RowProblem(f"{where} must be an object")
    function = tool.get("function") if "function" in tool else tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem(f"{where} has no function with a name")
    check_values(function, where)
    description = without_nulls(function)
    if isinstance(description.get("parameters"), str):
        description["parameters"] = parsed(description["parameters"], f"{where}.parameters")
        check_values(description["parameters"], f"{where}.parameters")
    return {"type": "function", "function": description}
