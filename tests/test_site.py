"""The site as a reader sees it: built from a checkout's notebooks, opened in a real browser without a network."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest
from small import SETTINGS, parameters

from lib import ROOT, experiment, report
from lib.experiment.reference import FORM

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PACKAGES = ("sphinx", "myst_nb", "furo", "sphinx_design", "latex2mathml", "fpdf", "pypdf", "playwright")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the extra `site` is not installed: {', '.join(MISSING)}"),
]
PAGES = ["index", "table4_dgad", "table2_las_at", "fig3_dynat", "walkthrough_dgad", "walkthrough_evaluation"]
OVERFLOWING = """() => {
  const root = document.documentElement, hides = (e) => getComputedStyle(e).overflowX !== "visible";
  const scrolls = (e) => e && e.tagName !== "ARTICLE" && (hides(e) || scrolls(e.parentElement));
  const beyond = (e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement);
  const out = [...document.querySelectorAll("article *")].filter(beyond).map((e) => e.outerHTML.slice(0, 200));
  return [...out, ...(root.scrollWidth > root.clientWidth ? ["the page"] : [])];
}"""
BROKEN = (
    "[...document.images].filter(i => !i.complete || !i.naturalWidth || !/\\w \\w/.test(i.alt)).map(i => i.outerHTML)"
)
UNRENDERED = (
    "[...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().width || /\\\\/.test(m.textContent))"
)


def python(*command: object) -> str:
    """What a command printed; OMP_NUM_THREADS is 1 already."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one table that was run, its picture and its executed notebook; the site and the report from it."""
    folder = tmp_path_factory.mktemp("outputs")
    table = experiment.open_table("table4_dgad", parameters(folder))
    report.save(report.compare(table, experiment.run(experiment.plan(table))), folder)
    (folder / "figures").mkdir()
    picture = ROOT / "outputs" / "reference" / "small" / "compare_papers_cifar10_jpeg.png"
    shutil.copy(picture, folder / "figures" / "table4_dgad.png")
    (folder / "executed").mkdir()
    copy = nbformat.read(ROOT / "notebooks" / "table4_dgad.ipynb", as_version=4)
    shown = {"image/png": b64encode(picture.read_bytes()).decode()}
    ran = next(cell for cell in copy.cells if "compare" in cell.source and cell.cell_type == "code")
    ran.outputs = [nbformat.v4.new_output("display_data", data=shown)]
    nbformat.write(copy, folder / "executed" / "table4_dgad.ipynb")
    python("site/paper.py", folder)
    python("site/pages.py", folder)
    said = python("-m", "sphinx", "-q", "-W", "-c", "site", folder / "site_source", folder / "site")
    assert not said, said
    return folder


@pytest.fixture(scope="module")
def open_page(outputs: Path):
    """Opens a page at a width, without a network; the list has its console's errors and requests that failed."""
    if not BROWSER:
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        context, troubles = browser.new_context(offline=True), []
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url),
        )

        def visit(name: str, width: int):
            troubles.clear()
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((outputs / "site" / f"{name}.html").as_uri(), wait_until="load")
            return page, troubles

        yield visit
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_without_a_network_and_is_no_wider_than_the_screen(open_page, name, width):
    page, troubles = open_page(name, width)
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(UNRENDERED) == []
    assert not re.search(r"\$\$|\\mathrm|\\tfrac", page.inner_text("article"))
    assert troubles == []


def test_equations_are_there_and_are_mathml(open_page):
    for name in ("table4_dgad", "walkthrough_dgad"):
        page, _ = open_page(name, 1280)
        assert page.locator("math").count() > 5
        assert page.locator("math").first.bounding_box()["height"] > 5


def test_the_index_filters_its_cards_by_paper_method_and_words(open_page):
    page, troubles = open_page("index", 1280)
    cards, everything = page.locator(".sd-card:visible"), page.locator(".sd-card").count()
    assert everything == len(list((ROOT / "notebooks").glob("*.ipynb"))) == cards.count()
    page.select_option("[data-filter=paper]", "DGAD")
    assert 0 < cards.count() < everything
    page.select_option("[data-filter=method]", "RSLAD")
    assert any("DGAD, Table 4" in text for text in cards.all_inner_texts())
    page.fill("[data-filter=words]", "table 4")
    assert cards.count() == 1
    page.fill("[data-filter=words]", "no such words")
    assert cards.count() == 0
    assert page.locator("#none").is_visible()
    assert troubles == []


def test_the_search_box_finds_a_table_by_what_its_notebook_says(open_page):
    page, troubles = open_page("index", 1280)
    page.fill(".sidebar-search", "swap_labels")
    page.press(".sidebar-search", "Enter")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert "DGAD, Table 4" in page.inner_text("#search-results")
    assert troubles == []


def test_what_was_run_says_by_what_and_where_and_the_rest_says_that_it_was_not(open_page):
    page, _ = open_page("table4_dgad", 1280)
    text = page.inner_text("article")
    assert re.search(r"Made .*by commit [0-9a-f]{12}.* runs \(.*cpu", text)
    assert "Not run here" not in text
    assert {"csv", "tex", "ipynb", "table pdf"} <= set(page.locator("a.download").all_inner_texts())
    page, _ = open_page("table2_las_at", 1280)
    assert "Not run here" in page.inner_text("article")
    assert {"csv", "tex", "ipynb"} <= set(page.locator("a.download").all_inner_texts())


def test_the_result_stands_before_the_notebook_and_the_claims_have_a_verdict(open_page):
    page, _ = open_page("table4_dgad", 1280)
    text = page.inner_text("article")
    assert text.index("PGD-AT") < text.index("DGAD beats AdaAD") < text.index("The notebook")
    verdict = page.locator("tr", has_text="DGAD beats AdaAD").first.locator("td").last.inner_text()
    assert re.match("not run|holds|does not hold|inside the noise", verdict)


def test_the_report_is_one_pdf_and_one_zip_of_all_that_is_there(outputs):
    from pypdf import PdfReader

    with ZipFile(outputs / "report" / "dynamic-at.zip") as archive:
        names = set(archive.namelist())
    kept = {
        "tables/table4_dgad.tex",
        "tables/table4_dgad.csv",
        "tables/table4_dgad_table.pdf",
        "figures/table4_dgad.png",
    }
    assert kept <= names
    text = "".join(page.extract_text() for page in PdfReader(outputs / "report" / "dynamic-at.pdf").pages)
    assert "PGD-AT" in text
    assert "DGAD" in text


def test_the_report_says_so_where_nothing_was_run(tmp_path):
    assert python("site/paper.py", tmp_path).startswith("There is no table or figure")


@pytest.fixture
def executed(monkeypatch):
    """site/executed.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "site")
    return importlib.import_module("executed")


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_as_a_page_has_its_equations_as_mathml_and_asks_nothing_of_a_network(executed, notebook):
    page = executed.as_html(notebook)
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown"]
    assert page.count("<math ") == sum(len(re.findall(r"\$\$|\$", cell)) // 2 for cell in cells)
    assert not re.search(r"<script|(?:src|href)=\"(?:https?:)?//|url\(['\"]?https?:", page)


def test_the_complete_rows_of_the_evidence_are_kept_as_an_executed_page(
    executed, outputs, tmp_path, monkeypatch, capsys
):
    (tmp_path / "quick").mkdir()
    facts = {"form": FORM, "settings": SETTINGS, "data": {"digits": {}}}
    (tmp_path / "quick" / "index.json").write_text(json.dumps(facts))
    monkeypatch.setattr(executed, "REFERENCE", tmp_path)
    monkeypatch.setattr("sys.argv", ["kept", "--scale", "quick", "--outputs", str(outputs)])
    executed.main()
    assert capsys.readouterr().out.splitlines() == [
        f"compare_papers: no row is complete in {outputs} (make evidence)",
        "table4_dgad_digits.html: PGD-AT, DGAD",
    ]
    text = re.sub("<[^>]+>", " ", (tmp_path / "quick" / "table4_dgad_digits.html").read_text())
    assert "nothing will be trained" in text
    assert "Sanity checks" in text
