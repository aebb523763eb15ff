"""Events of `tasks.progress` in a few words, for a terminal and for Prefect's pages."""

from typing import Any

from tasks.durations import duration


def rows_text(event: dict[str, Any]) -> str:
    """`near copies: 12,000 of 80,000 rows, 24,100 rows/s, 3 s left`; what is unknown is left out."""
    step, total = event.get("step"), event.get("total")
    done = count(event.get("done")) + (f" of {count(total)}" if total else "")
    parts = [(f"{step}: " if step else "") + f"{done} rows"]
    if isinstance(speed := event.get("rows_per_second"), int | float):
        parts.append(f"{speed:,.0f} rows/s")
    if isinstance(left := event.get("eta_seconds"), int | float):
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def step_text(event: dict[str, Any]) -> str:
    """`step 120 of 400, loss 2.314, 8,410 tokens/s, 41 s left`; what is unknown is left out."""
    total = event.get("total_steps")
    parts = [f"step {count(event.get('step'))}" + (f" of {count(total)}" if total else "")]
    if isinstance(loss := event.get("loss"), int | float):
        parts.append(f"loss {loss:.3f}")
    if isinstance(speed := event.get("tokens_per_second"), int | float):
        parts.append(f"{speed:,.0f} tokens/s")
    if isinstance(left := event.get("eta_seconds"), int | float):
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def count(value: object) -> str:
    """A whole number with its thousands told apart."""
    return f"{value:,}" if isinstance(value, int) else "?"
