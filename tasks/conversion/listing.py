"""Many names or mistakes in one error message: one a line, the first dozen, what is alike once."""

from collections.abc import Sequence

MOST_LISTED = 12
MOST_ALIKE = 3


def listed(names: Sequence[str]) -> str:
    """Indented lines, and how many more there are."""
    lines = [f"  {name}" for name in names[:MOST_LISTED]]
    if len(names) > MOST_LISTED:
        lines.append(f"  ... and {len(names) - MOST_LISTED} more")
    return "\n".join(lines)


def listed_once(mistakes: Sequence[tuple[str, str]]) -> str:
    """Pairs of a module's name and what is wrong with it; layers with the same mistake are one line."""
    alike: dict[str, list[str]] = {}
    for name, told in mistakes:
        alike.setdefault(told.replace(name, "\0"), []).append(name)
    lines = []
    for told, names in alike.items():
        told = told.replace("\0", names[0])
        if others := names[1:]:
            more = f" and {len(others) - MOST_ALIKE} more" if len(others) > MOST_ALIKE else ""
            told += f" The same holds for {', '.join(others[:MOST_ALIKE])}{more}."
        lines.append(told)
    return listed(lines)


def short(name: str) -> str:
    """The last two parts of a dotted name: what a person writes for all layers at once."""
    return ".".join(name.split(".")[-2:])
