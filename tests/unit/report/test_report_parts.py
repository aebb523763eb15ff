"""The parts: charts, the choice of answers, cost, the colours of slices."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.report.cost_section import device_hours
from tasks.report.curves import DRAWN_POINTS, chart, curves_section
from tasks.report.markup import link, number, passage, signed
from tasks.report.measures import ordered, word
from tasks.report.metric_table import interval_bar
from tasks.report.shared_words import MOST_WORDS, marked
from tasks.report.slice_map import slices_section
from tasks.samples import choose


def predictions(folder: Path, gains: list[float | None]) -> Path:
    rows = [
        {
            "id": f"r{n}",
            "prompt": "p",
            "reference": "r",
            "label": None,
            "base_answer": f"b{n}",
            "challenger_answer": f"c{n}",
        }
        for n in range(len(gains))
    ]
    marks = [
        {"base_rougeL": 0.4, "challenger_rougeL": None if gain is None else 0.4 + gain}
        for gain in gains
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    pq.write_table(pa.Table.from_pylist(marks), folder / "scores.parquet")
    return folder


def test_best_gains_and_worst_losses_come_first_and_the_lot_is_the_same_every_time(
    tmp_path: Path,
) -> None:
    folder = predictions(tmp_path, [0.5, -0.4, 0.0, 0.2, -0.1, 0.0, None, 0.0, 0.0, 0.1])
    found = choose(folder, ["base", "challenger"], "base", 6)
    assert [(one.kind, one.id) for one in found[:4]] == [
        ("gain", "r0"),
        ("gain", "r3"),
        ("regression", "r1"),
        ("regression", "r4"),
    ]
    assert [one.kind for one in found[4:]] == ["random", "random"]
    assert found[0].answers == {"base": "b0", "challenger": "c0"}
    assert found == choose(folder, ["base", "challenger"], "base", 6)
    other = choose(folder, ["base", "challenger"], "base", 6, seed="another")
    assert other[:4] == found[:4]
    assert other[4:] != found[4:]


def test_a_row_is_shown_once_and_never_more_rows_than_there_are(tmp_path: Path) -> None:
    folder = predictions(tmp_path, [0.5, 0.1, -0.2])
    found = choose(folder, ["base", "challenger"], "base", 20)
    assert sorted(one.id for one in found) == ["r0", "r1", "r2"]
    assert choose(folder, ["base", "challenger"], "base", 0) == []


def test_without_scores_all_rows_are_by_lot(tmp_path: Path) -> None:
    folder = predictions(tmp_path, [0.5, 0.1, -0.2])
    (folder / "scores.parquet").unlink()
    found = choose(folder, ["base", "challenger"], "base", 2)
    assert [one.kind for one in found] == ["random", "random"]


def test_a_chart_of_one_point_and_one_of_equal_values_are_drawn() -> None:
    for points in ([(5.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)]):
        drawn = chart("Loss", {"training": points})
        assert "nan" not in drawn.lower()
        assert drawn.count("<circle") == len(points)


def test_a_chart_keeps_the_peaks_of_a_long_training() -> None:
    history = [{"step": n, "loss": 1.0} for n in range(50_000)]
    history[31_234]["loss"] = 9.0
    drawn = curves_section(history)
    line = drawn.split('points="')[1].split('"')[0].split()
    assert len(line) <= DRAWN_POINTS
    heights = {float(point.split(",")[1]) for point in line}
    assert len(heights) == 2


def test_small_rates_are_written_in_one_notation() -> None:
    drawn = chart("Learning rate", {"rate": [(0.0, 0.0), (10.0, 2e-4)]})
    assert [tick for tick in (">2e−4<", ">1.5e−4<", ">5e−5<", ">0<") if tick not in drawn] == []
    assert ">0.0005<" in chart("Learning rate", {"rate": [(0.0, 0.0), (10.0, 2e-3)]})


def test_losses_that_are_no_numbers_are_counted_and_not_drawn() -> None:
    drawn = curves_section(
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    )
    assert "1 recorded losses are no finite numbers" in drawn
    assert drawn.count("<circle") == 2


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        ("NVIDIA H200", 1, ("GPU-hours", 0.5)),
        ("NVIDIA H200", 8, ("GPU-hours", 4.0)),
        ("cpu, 16 threads", 1, ("CPU-hours", 8.0)),
        ("cpu", 1, ("machine-hours", 0.5)),
    ],
)
def test_device_hours(device: str, processes: int, expected: tuple[str, float]) -> None:
    assert device_hours(1800.0, device, processes) == expected


def test_a_slice_that_lost_is_orange_also_where_less_is_better() -> None:
    def difference(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    evaluation = {
        "rows": 100,
        "metrics": {"base": {"loss": 2.0}, "champion": None, "challenger": {"loss": 1.9}},
        "directions": {"loss": -1, "mean_length": 0},
        "differences": {"base": {"loss": difference(-0.1)}, "champion": None},
        "slices": {
            "source": {
                "a": {"rows": 50, "differences": {"base": {"loss": difference(0.3)}}},
                "b": {
                    "rows": 50,
                    "differences": {
                        "base": {"loss": difference(-0.5), "mean_length": difference(1)}
                    },
                },
            }
        },
    }
    drawn = slices_section(evaluation)
    losing, winning = drawn.split(">a</th>")[1].split("</tr>")[0], drawn.split(">b</th>")[1]
    assert "rgba(213,94,0" in losing
    assert "<b>−0.300</b>" in losing
    assert "rgba(0,114,178,0.55)" in winning
    assert "mean_length" not in drawn


def test_words_follow_the_direction_and_the_interval() -> None:
    evaluation = {"directions": {"loss": -1, "rougeL": 1}}
    up = {"mean": 0.1, "low": 0.05, "high": 0.2}
    assert word(evaluation, "rougeL", up) == "better"
    assert word(evaluation, "loss", up) == "worse"
    assert word(evaluation, "mean_length", up) == ""
    assert word(evaluation, "rougeL", {**up, "low": -0.1}) == "unclear"


def test_metrics_of_the_gate_come_first() -> None:
    evaluation = {"gate": {"rules": [{"metric": "bleu"}, {"metric": "absent"}]}}
    assert ordered(evaluation, ["chrf", "bleu", "rougeL", "mine"]) == [
        "bleu",
        "rougeL",
        "chrf",
        "mine",
    ]


def test_the_bar_of_an_interval_stays_inside_its_picture() -> None:
    for low, mean, high in ((-1e9, 0.0, 1.0), (0.1, 0.2, 0.3), (-3.0, -2.0, -1.0)):
        bar = interval_bar(low, mean, high)
        left, right = (
            float(part) for part in bar.split('class="span" d="M')[1].split('"')[0].split(" 7H")
        )
        assert 0 <= left <= right <= 96


def test_numbers_as_a_person_reads_them() -> None:
    assert number(None) == "–"
    assert number(True) == "–"
    assert number(float("nan")) == "not finite"
    assert number(12345.6) == "12,346"
    assert number(1234) == "1,234"
    assert signed(-0.5) == "−0.500"
    assert signed(0.5) == "+0.500"
    assert signed(-0.00001) == "0.000"


def test_only_web_addresses_become_links() -> None:
    assert link("https://host/x", "x").startswith("<a ")
    for url in ("javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", None):
        assert "<a" not in link(url, "x")


def test_an_empty_answer_is_told_and_a_long_one_is_cut() -> None:
    assert "(empty)" in passage(" \n")
    assert "details" not in passage("short")
    cut = passage("a" * 5000)
    assert "show all 5,000 characters" in cut
    assert cut.count("a" * 5000) == 1


def test_words_of_the_reference_are_marked_in_its_order() -> None:
    shown = marked("Close <the> FILE now, or raise", "close the file or not")
    assert shown == (
        "<mark>Close</mark> &lt;<mark>the</mark>&gt; <mark>FILE</mark> now, <mark>or</mark> raise"
    )
    assert marked("the file is open", "the file") == "<mark>the file</mark> is open"
    assert marked("file the", "the file") == "<mark>file</mark> the"
    assert marked("", "x") == ""
    assert marked("word " * (MOST_WORDS + 1), "word") is None
