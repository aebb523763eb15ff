"""The dataset in short: how many rows, from where, what was left out, what to look at."""

from collections.abc import Mapping
from typing import Any

from tasks.report.markup import MISSING, facts, number, paragraph, section, table, text

_LISTED = 12


def dataset_section(card: Mapping[str, Any], tokens: Mapping[str, Any]) -> str:
    """The card's main numbers; a sentence where there is no card."""
    if not card:
        return section("dataset", "Dataset", paragraph("No dataset card was found.", "hint"))
    rows: Mapping[str, int] = card.get("rows") or {}
    pairs = [(f"{text(side)} rows", number(many)) for side, many in rows.items()]
    if card.get("holdout_rows"):
        pairs.append(("of them the holdout's", number(card["holdout_rows"])))
    if card.get("read") is not None:
        pairs.append(("rows read", number(card["read"])))
    for side, lengths in (card.get("characters") or {}).items():
        for part in ("prompt", "answer"):
            found = lengths.get(part) or {}
            if found.get("max"):
                told = (
                    f"median {number(found.get('median'))}, 95 % up to {number(found.get('p95'))}"
                )
                pairs.append((f"{text(side)} {part}s, characters", told))
    for side in rows:
        every = (tokens.get("tokens") or {}).get(side)
        trained = (tokens.get("trained_tokens") or {}).get(side)
        if every is not None:
            pairs.append(
                (f"{text(side)} tokens", f"{number(every)}, {number(trained)} of them carry loss")
            )
    pairs.append(("digest", f"<code>{text(card.get('digest') or MISSING)}</code>"))
    parts = [facts(pairs)]
    parts += [paragraph(text(warning), "warn") for warning in card.get("warnings") or ()]
    if sources := card.get("sources"):
        parts.append("<h3>Sources</h3>")
        parts.append(
            table(
                ["source", "kind", "rows"],
                [
                    [text(one.get("name")), text(one.get("kind", MISSING)), number(one.get("rows"))]
                    for one in sources[:_LISTED]
                ],
                numbers_from=2,
            )
        )
        parts.append(_more(len(sources)))
    if dropped := card.get("dropped"):
        ranked = sorted(dropped.items(), key=lambda item: -item[1])
        parts.append("<h3>Left out</h3>")
        parts.append(
            table(
                ["reason", "rows"],
                [[text(reason), number(many)] for reason, many in ranked[:_LISTED]],
                numbers_from=1,
            )
        )
        parts.append(_more(len(ranked)))
    told = "The whole card, with rows to look at: <code>dataset/card.html</code> among the MLflow run's artifacts."
    return section("dataset", "Dataset", *parts, paragraph(told, "hint"))


def _more(many: int) -> str:
    return paragraph(f"{many - _LISTED:,} more are in the card.", "hint") if many > _LISTED else ""
