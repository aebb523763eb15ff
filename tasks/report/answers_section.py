"""Answers side by side: best gains, worst regressions, and some by lot."""

from collections.abc import Sequence

from tasks.report.markup import count, is_short, number, paragraph, passage, section, signed, text
from tasks.report.measures import NAMES
from tasks.report.shared_words import marked
from tasks.samples import Kind, Sample

_GROUPS: dict[Kind, tuple[str, str]] = {
    "gain": ("Best gains", "Rows on which the adapter gained most in ROUGE-L over the {rival}."),
    "regression": ("Worst regressions", "Rows on which it lost most against the {rival}."),
    "random": ("By lot", "Picked by a hash of their ids: the same rows in every report."),
}


def answers_section(shown: Sequence[Sample], rival: str) -> str:
    """The answers in three groups; a sentence when there are none."""
    if not shown:
        told = "None are shown: the recipe says <code>evaluation.sample_answers: 0</code>, or none are stored."
        return section("answers", "Answers", paragraph(told, "hint"))
    parts = []
    for kind, (title, told) in _GROUPS.items():
        group = [one for one in shown if one.kind == kind]
        if not group:
            if kind != "random":
                parts.append(f"<h3>{title}</h3>" + paragraph("No such row.", "hint"))
            continue
        parts.append(
            f"<h3>{title} <small>{count(len(group), 'row')}</small></h3>"
            + paragraph(told.format(rival=NAMES[rival]), "hint")
        )
        parts += [_answer(one) for one in group]
    told = (
        "The number beside a name is the answer's ROUGE-L. <mark>Marked</mark>: words that stand in the "
        "reference too, in the same order."
    )
    return section("answers", "Answers side by side", paragraph(told, "hint"), *parts)


def _answer(one: Sample) -> str:
    gain = ""
    if one.gain is not None:
        state = "better" if one.gain > 0 else "worse" if one.gain < 0 else ""
        gain = f' <span class="diff {state}"><b>{signed(one.gain)}</b></span>'
    label = f' <span class="hint">{text(one.label)}</span>' if one.label else ""
    columns = [_column("reference", "", one.reference)]
    columns += [
        _column(NAMES.get(model, model), number(one.scores.get(model)), answer, one.reference)
        for model, answer in one.answers.items()
    ]
    return (
        f'<article class="row"><h4>Row <code>{text(one.id)}</code>{label}{gain}</h4>'
        f'<div class="prompt"><div class="who">prompt</div>{passage(one.prompt)}</div>'
        f'<div class="side">{"".join(columns)}</div></article>\n'
    )


def _column(who: str, score: str, answer: str, reference: str = "") -> str:
    mark = f' <span class="score">{score}</span>' if score else ""
    shown = marked(answer, reference) if reference and is_short(answer) else None
    return (
        f'<div class="answer {text(who)}"><div class="who">{text(who)}{mark}</div>'
        f"{passage(answer, shown)}</div>"
    )
