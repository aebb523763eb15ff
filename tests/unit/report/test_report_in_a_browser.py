"""The page in headless Chromium: it says nothing on the console, asks for nothing, and is seen."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from tasks.report.markup import passage
from tasks.report.page import write_report
from tasks.report.run import ReportedRun
from tests.unit.report.chromium import CHROMIUM, browser
from tests.unit.report.conftest import NASTY

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium here; Debian and Ubuntu have it as `chromium`"
    ),
]


def test_the_report_opens_without_a_complaint_and_without_a_request(
    full_run: ReportedRun, tmp_path: Path
) -> None:
    from PIL import Image

    made_from = replace(full_run.made_from, recipe_text=NASTY)
    page = tmp_path / "report.html"
    write_report(replace(full_run, made_from=made_from, notes=[NASTY]), page)
    with browser(tmp_path / "profile") as chromium:
        for width in (1280, 420):
            for dark in (False, True):
                look = chromium.look(page, width=width, dark=dark)
                assert look.title == "docstrings: Refused by the gate"
                assert look.complaints == []
                assert look.requests == [page.as_uri()]
                assert look.wide <= 0, f"at {width} px the page is {look.wide} px too wide"
                colours = Image.open(BytesIO(look.picture)).convert("RGB").getcolors(1 << 24)
                assert colours is not None
                assert len(colours) > 100
                # No colour but the ground's covers the page, and the ground is dark where asked.
                share, ground = max(colours)
                assert 0.3 < share / (width * 900) < 0.97
                assert (sum(ground) < 200) == dark


def test_names_without_end_and_other_scripts_do_not_widen_the_page(
    changed_metrics: Callable[..., ReportedRun], full_run: ReportedRun, tmp_path: Path
) -> None:
    facts = json.loads((full_run.evaluation / "metrics.json").read_text())
    endless = "custom/" + "metric_" * 40
    for place in (facts["metrics"], facts["differences"]):
        for values in place.values():
            values[endless] = values["rougeL"]
    some = next(iter(facts["slices"]["source"].values()))
    facts["slices"]["label"] = {
        "עברית": some,
        "日本語" * 40: some,
        "folder/" * 40 + "file.py": some,
    }
    facts["gate"]["rules"].append({"metric": endless, "passed": False, "why": "x" * 500})
    facts["notes"] = ["n" * 500]
    page = tmp_path / "report.html"
    write_report(replace(changed_metrics(**facts), name="n" * 200), page)
    with browser(tmp_path / "profile") as chromium:
        for width in (1280, 420):
            look = chromium.look(page, width=width)
            assert look.complaints == []
            assert look.wide <= 0


def test_a_script_in_a_page_would_have_been_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><title>t</title><script>console.log('seen')</script>"
        "<img src='http://127.0.0.1:9/x.png'><div style='width:2000px'>wide</div>"
    )
    with browser(tmp_path / "profile") as chromium:
        look = chromium.look(page, width=420)
    assert any("seen" in complaint for complaint in look.complaints)
    assert "http://127.0.0.1:9/x.png" in look.requests
    assert look.wide > 1000


def test_a_long_answer_opens_where_it_is_cut(full_run: ReportedRun, tmp_path: Path) -> None:
    made = replace(full_run, notes=[])
    page = tmp_path / "report.html"
    write_report(made, page)
    text = page.read_text()
    start = text.index('<div class="passage" dir="auto">')
    long = "first " * 200 + "LAST"
    page.write_text(text[:start] + f'<div id="cut">{passage(long)}</div>' + text[start:])
    with browser(tmp_path / "profile") as chromium:
        shown = "document.title = document.querySelector('#cut').innerText.includes('LAST')"
        assert chromium.look(page, width=800, script=shown).title == "false"
        opened = f"document.querySelector('#cut summary').click(); {shown}"
        assert chromium.look(page, width=800, script=opened).title == "true"
