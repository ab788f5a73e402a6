"""A table in a real browser, where there is one."""

import random
import shutil
from dataclasses import replace

import pytest
from small import parameters

from lib.evaluate import Accuracy
from lib.experiment.planning import Result
from lib.experiment.table import open_table
from lib.report import compare

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = "<!doctype html><meta name=viewport content='width=device-width'><body style='margin: 0 15px'>"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table4_dgad", "table2_las_at", "table1_dynat"])
def test_every_column_is_seen_without_scrolling_at_1000_pixels_and_on_a_phone_turned_sideways(
    name, tmp_path, nothing_kept
):
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    if BROWSER is None:
        pytest.skip("no Chromium here")
    table = open_table(name, parameters(tmp_path, rows=[], students=[], teachers=[], settings={}))
    draw, results = random.Random(0), []
    for cell in table.cells:
        flags = {c: "".join(draw.choices("01", k=c.images or 500)) for c in table.columns}
        made = tuple(Accuracy(c, f.count("1"), len(f), f) for c, f in flags.items())
        results.append(Result(cell.student, cell.teacher, cell.row.row, cell.seed, cell.digest, made))
    comparison = compare(table, results)
    kept = comparison.frame.assign(kept=comparison.frame["measured"], kept_seeds=1)
    kept = kept.assign(kept_low=kept["low"], kept_high=kept["high"])
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for shown in (comparison, replace(comparison, frame=kept)):
            for width in (1000, 850):
                page = browser.new_page(viewport={"width": width, "height": 400})
                page.set_content(PAGE + shown.to_html())
                assert page.evaluate("document.querySelector('table').getBoundingClientRect().right") <= width
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                rows = page.locator("tbody tr:not(:first-child) td:first-of-type")
                if width == 1000 and shown is comparison:  # one line per row: an interval's two small lines high
                    assert rows.first.bounding_box()["height"] < 26
        browser.close()
