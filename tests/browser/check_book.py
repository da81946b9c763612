"""The book: built from the stored notebooks, read and searched from disk, without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from driving import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "myst_nb", reason="the book's tools are missing: pip install -c constraints.txt -e '.[book]'"
    )
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-b",
        "html",
        "-c",
        str(ROOT / "book"),
        str(ROOT),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_first_page_leads_through_the_course(site, page, shoot):
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    page.locator("article a[href*='notebooks/00_']").first.click()
    for number in ("01", "02"):
        page.locator(".prev-next-footer .right-next, .prev-next-area .right-next").first.click()
        page.wait_for_url(f"**/notebooks/{number}_*.html")
    page.locator(".left-prev").first.click()
    page.wait_for_url("**/notebooks/01_*.html")
    assert page.locator("article a[href*='glossary']").count() >= 2
    shoot("9-book-01")
    assert page.watch.errors == [] and page.watch.strangers == []


def test_formulas_and_figures_are_there_without_a_network(site, page, shoot):
    page.goto(next((site / "notebooks").glob("03_*.html")).as_uri())
    wait_for(page, lambda: page.locator("article mjx-container").count() > 20)
    assert page.locator("article .math:not(:has(mjx-container))").count() == 0
    assert page.locator("article img[src*='_images']").count() >= 5
    assert page.locator("article img:not([alt])").count() == 0
    drawn = page.locator("article img").evaluate_all("all => all.every(one => one.naturalWidth > 100)")
    assert drawn
    shoot("9-book-03")
    assert page.watch.errors == [] and page.watch.strangers == []


def test_a_search_finds_a_page(site, page, shoot):
    page.goto((site / "search.html").as_uri() + "?q=rectified")
    found = page.locator("#search-results li a")
    wait_for(page, lambda: found.count() > 3)
    assert any("/notebooks/03_" in one.evaluate("link => link.href") for one in found.all())
    shoot("9-book-search")
    assert page.watch.errors == [] and page.watch.strangers == []
