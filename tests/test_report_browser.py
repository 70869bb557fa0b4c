"""The page in a real browser, from disk: filters, keys, decisions, colours, and nothing of what strangers wrote is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chromium import CHROMIUM, Browser
from report_factories import HOSTILE, drawn_run
from rlabel.report.page import write_report
from rlabel.run.directory import RunDirectory
from rlabel.run.review import apply_decisions, read_decisions
from rlabel.storage import Store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
FOCUSED = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    drawn_run(made, num_labels=60)
    write_report(str(made / "run"), str(made / "images"), str(made / "truth.json"))
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, folder: Path) -> Browser:
    """The page, read to its end, with nothing decided yet."""
    browser.open((folder / "run" / "report.html").as_uri())
    browser.wait("document.readyState === 'complete'")
    browser.run("localStorage.clear()")
    browser.events.clear()
    browser.open((folder / "run" / "report.html").as_uri())
    browser.wait("document.getElementById('gallery')?.dataset.ready === 'true'")
    return browser


def count(page: Browser) -> str:
    text: str = page.run("document.querySelector('.count p').textContent")
    return text


def choose(page: Browser, control: str, value: str) -> None:
    page.run(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})(document.getElementById('{control}'))"
    )


def test_filters_say_how_many_regions_they_leave(page: Browser) -> None:
    assert count(page) == "62 of 62 regions shown 0 decided"
    for control, value, left in (
        ("f-right", "0", 30),
        ("f-outcome", "0", 30),
        ("f-low", "0.5", 15),
        ("f-text", "no such", 0),
    ):
        choose(page, control, value)
        page.wait(f"document.getElementById('g-count').textContent.startsWith('{left} of')")
    page.run("document.querySelector('#g-filters [type=reset]').click()")
    page.wait("document.getElementById('g-count').textContent.startsWith('62 of')")


def test_a_review_by_keyboard_alone_ends_in_decisions_that_apply(page: Browser, folder: Path) -> None:
    page.run("window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }")
    page.run("document.getElementById('f-sort').focus()")
    for _ in range(4):
        page.press(
            "Tab"
        )  # over the buttons that clear the filters, accept all and open a file, to the one cell that Tab reaches
    assert page.run("document.activeElement.className") == "cell"
    page.press("x")  # the abstention is first
    page.press("a")  # then the lowest score
    assert page.run(FOCUSED).startswith("cat, 0.03")
    page.press("c")
    for letter in "dog":
        page.press(letter)
    page.press("Enter")
    page.press("a")
    page.press("u")
    page.press("End")
    assert "failed: image" in page.run(FOCUSED)
    assert count(page) == "62 of 62 regions shown 3 decided"
    page.press("Tab")
    assert page.run("document.activeElement.closest('#g-list') === null")  # no trap
    page.run("document.getElementById('b-save').click()")
    text = page.run("window.saved.text()")
    (folder / "decisions.json").write_text(text)
    run = RunDirectory.open(Store.open(folder / "run"))
    decisions = read_decisions([str(folder / "decisions.json")], run)
    assert [one.to_json() for one in decisions.values()] == [
        {"region_key": "10", "decision": "accept"},
        {"region_key": "11", "decision": "category", "category_id": 3},
        {"region_key": "70", "decision": "abstain"},
    ]
    assert apply_decisions(run, decisions).labels == 60
    page.open((folder / "run" / "report.html").as_uri())
    page.wait("document.getElementById('g-done')?.textContent === '3 decided'")  # kept in the browser


def test_nothing_that_strangers_wrote_is_run(page: Browser) -> None:
    assert page.run("document.title") != "owned"
    page.run("document.querySelector('.cell').click()")
    assert HOSTILE in page.run("document.querySelector('.detail').textContent")
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert page.complaints() == []


def test_the_policy_stops_what_is_not_the_pages_own(page: Browser) -> None:
    page.run("(s => { s.textContent = 'window.ran = 1'; document.body.append(s); })(document.createElement('script'))")
    page.run("document.body.insertAdjacentHTML('beforeend', '<img id=bad src=x onerror=\"window.ran = 1\">')")
    page.run("new Promise((done) => setTimeout(done, 200))")
    assert page.run("window.ran") is None
    assert any("Content Security Policy" in text for text in page.complaints())


def test_only_what_is_in_view_is_in_the_document(page: Browser) -> None:
    assert 8 <= page.run("document.querySelectorAll('.cell').length") < 62
    page.run("document.getElementById('g-list').scrollTop = 1e6")
    page.wait("[...document.querySelectorAll('.cell')].some((cell) => cell.getAttribute('aria-posinset') === '62')")
    assert page.run("document.querySelectorAll('.cell[tabindex=\"0\"]').length") == 1  # Tab still finds the list


@pytest.mark.parametrize(("scheme", "size"), [("light", (1280, 900)), ("dark", (390, 800))])
def test_colours_follow_the_system_until_one_is_chosen(page: Browser, tmp_path: Path, scheme: str, size: Any) -> None:
    def paper() -> int:
        page.screenshot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            return shot.convert("L").getpixel((3, 3))

    page.resize(*size)
    page.prefer(scheme)
    try:
        assert (paper() > 200) == (scheme == "light")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        for _ in range(2 if scheme == "light" else 1):
            page.run("document.getElementById('theme').click()")
        assert (paper() > 200) != (scheme == "light")
    finally:
        page.prefer("light")
        page.resize(1280, 900)


def test_a_page_without_its_folder_says_so(browser: Browser, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes((folder / "run" / "report.html").read_bytes())
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait("document.getElementById('g-trouble')?.textContent.includes('report')")
    assert browser.run("document.getElementById('g-trouble').getAttribute('role')") == "alert"
