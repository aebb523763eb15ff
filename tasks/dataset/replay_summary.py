"""What a person reads about replayed rows, at the end of the dataset's summary."""

from typing import Any

from tasks.markdown import cell, table


def replay_section(told: dict[str, Any]) -> str:
    """Markdown of the card's `replay`."""
    parts = [
        "",
        "## Replayed rows",
        f"{told['rows']:,} training rows are from the dataset of {told['from']} and not among today's; "
        f"training.replay.share {told['share']:g} asks for {told['wanted']:,}. Of its "
        f"{told['read']:,} training rows, these were left out:",
        table(
            ("reason", "rows"),
            [(cell(reason, 200), f"{count:,}") for reason, count in told["left_out"].items()],
        )
        if told["left_out"]
        else "None.",
    ]
    return "\n\n".join(parts) + "\n"
