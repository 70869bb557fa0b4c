"""What reviewers do on the page beside single decisions, in a real browser: former decisions, files, all that is shown, one picture.

And who does it by keyboard or with a screen reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import CHROMIUM, Browser
from report_factories import drawn_run
from rlabel.report.page import write_report
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.run.review import Decision, apply_decisions
from rlabel.storage import Store
from run_factories import committed_run, image_row, label, manifest, region, shard_result

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 20 labels, an abstention (30) and a failure (31); of a former review, 10 is accepted and 11 abstained from."""
    made = tmp_path_factory.mktemp("page")
    run = drawn_run(made, num_labels=20)
    former = (Decision(region_key="10", kind="accept"), Decision(region_key="11", kind="abstain"))
    apply_decisions(run, {one.region_key: one for one in former})
    write_report(str(made / "run"), str(made / "images"), str(made / "truth.json"))
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def opened(browser: Browser, folder: Path) -> None:
    browser.open((folder / "run" / "report.html").as_uri())
    browser.wait("document.getElementById('gallery')?.dataset.ready === 'true'")
    browser.run("window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }")


@pytest.fixture
def page(browser: Browser, folder: Path) -> Browser:
    """The page as one who opens it for the first time has it."""
    opened(browser, folder)
    browser.run("localStorage.clear()")
    browser.events.clear()
    opened(browser, folder)
    return browser


def text(page: Browser, of: str) -> str:
    found: str = page.run(f"document.getElementById('{of}').textContent")
    return found


def click(page: Browser, of: str) -> None:
    page.run(f"document.getElementById('{of}').click()")


def saved(page: Browser) -> dict[str, str]:
    """Return what the page downloads: decision by region."""
    click(page, "b-save")
    document = json.loads(page.run("window.saved.text()"))
    return {one["region_key"]: one["decision"] for one in document["decisions"]}


def give_file(page: Browser, content: str) -> str:
    """Open a file of decisions and return what the page says of it."""
    page.run(
        f"(() => {{ const d = new DataTransfer(); d.items.add(new File([{json.dumps(content)}], 'd.json')); document.getElementById('d-said').textContent = '';"
        " const box = document.getElementById('f-file'); box.files = d.files; box.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.getElementById('d-said').textContent")
    return text(page, "d-said")


def decisions(folder: Path, *rows: dict[str, Any], **other: Any) -> str:
    run = RunDirectory.open(Store.open(folder / "run")).fingerprint
    return json.dumps({"format": "rlabel-review", "version": 1, "run": run, "decisions": list(rows), **other})


def test_decisions_of_the_former_review_are_there_and_stay_in_what_is_downloaded(page: Browser, folder: Path) -> None:
    assert text(page, "g-done") == "2 decided"
    assert saved(page) == {"10": "accept", "11": "abstain"}
    page.run("[...document.querySelectorAll('.cell')].find((cell) => cell.textContent.includes('accepted')).click()")
    page.press("Delete")
    assert saved(page) == {"11": "abstain"}
    opened(page, folder)  # a decision that was taken back stays so
    assert saved(page) == {"11": "abstain"}


def test_all_that_is_shown_is_accepted_after_a_question_and_undone_in_one_step(page: Browser) -> None:
    page.run("document.getElementById('f-right').value = '1'")
    page.run("document.getElementById('g-filters').dispatchEvent(new Event('input'))")
    page.wait("document.getElementById('g-count').textContent.startsWith('10 of')")  # one of them is decided already
    click(page, "b-all")
    assert text(page, "q-words").startswith("Accept 9 labels") and "1 of those shown" in text(page, "q-words")
    page.press("Escape")
    assert text(page, "g-done") == "2 decided"
    click(page, "b-all")
    assert page.run("document.activeElement.id") == "q-no"  # Enter in haste accepts nothing
    click(page, "q-yes")
    assert text(page, "g-done") == "11 decided"
    assert set(saved(page).values()) == {"accept", "abstain"}
    click(page, "b-all")
    assert page.run("document.getElementById('q-yes').hidden")
    click(page, "q-no")
    click(page, "b-undo")
    assert saved(page) == {"10": "accept", "11": "abstain"}


def test_one_picture_alone_and_back(page: Browser) -> None:
    page.run("document.querySelector('.cell').click()")
    file_name = page.run("document.querySelector('.cell').getAttribute('aria-label')").rsplit(", ", 1)[1]
    page.press("i")
    assert text(page, "g-count") == f"11 of 22 regions shown, of {file_name}"
    assert page.run("document.getElementById('b-picture').getAttribute('aria-pressed')") == "true"
    assert page.run("document.activeElement.className") == "cell"
    page.press("i")
    assert text(page, "g-count") == "22 of 22 regions shown"


def test_the_order_by_label_has_each_name_together_from_its_lowest_score(page: Browser) -> None:
    page.run("document.getElementById('f-sort').value = 'name'")
    page.run("document.getElementById('g-filters').dispatchEvent(new Event('input'))")
    page.wait("document.querySelector('.cell .words').textContent === 'cat'")
    page.run("document.getElementById('g-list').scrollTop = 0")
    shown = page.run(
        "[...document.querySelectorAll('.cell')].map((cell) => [cell.children[1].textContent, Number(cell.lastChild.textContent.slice(0, 4))])"
    )
    labels = [one for one in shown if one[0] in ("cat", "dog")]
    assert len(labels) >= 10 and labels == sorted(labels)


def test_a_file_of_decisions_goes_on_where_it_ended(page: Browser, folder: Path) -> None:
    own = decisions(folder, {"region_key": "12", "decision": "category", "category_id": 3})
    assert give_file(page, own) == "d.json: 1 decisions, 1 of them on regions that were undecided."
    assert saved(page) == {"10": "accept", "11": "abstain", "12": "category"}
    click(page, "b-undo")
    assert saved(page) == {"10": "accept", "11": "abstain"}


def test_a_wrong_file_of_decisions_is_named_and_changes_nothing(page: Browser, folder: Path) -> None:
    for content, named in (
        ("{", "expected JSON"),
        ("[]", "expected decisions that this page downloaded"),
        ("null", "expected decisions that this page downloaded"),
        (decisions(folder, run="f" * 64), "expected decisions on this run"),
        (decisions(folder, {"region_key": "12", "decision": "category", "category_id": 99}), "decision 1 is none"),
        (decisions(folder, {"region_key": "12", "decision": "accept"}, {"region_key": 5}), "decision 2 is none"),
        (decisions(folder, None), "decision 1 is none"),  # type: ignore[arg-type]
        (decisions(folder), "no decisions"),
    ):
        assert named in give_file(page, content), content
    assert text(page, "g-done") == "2 decided" and page.complaints() == []


def test_a_screen_reader_is_given_roles_names_and_places(page: Browser) -> None:
    nodes = page.tree()
    assert [one["name"] for one in nodes if one["role"] == "listbox"] == ["Regions"]
    options = [one for one in nodes if one["role"] == "option" and "truth" in one["name"]]
    assert len(options) >= 8 and all(".jpg" in one["name"] for one in options)
    places = page.run("[...document.querySelectorAll('.cell')].map((c) => [c.ariaSetSize, c.ariaPosInSet])")
    assert places[:2] == [["22", "1"], ["22", "2"]]
    for role in ("button", "combobox", "searchbox", "spinbutton", "image", "table", "dialog"):
        assert all(one["name"] for one in nodes if one["role"] == role), role
    assert {"Accept A", "Abstain X", "Download decisions"} <= {one["name"] for one in nodes if one["role"] == "button"}
    live = [one for one in nodes if one.get("live") == "polite"]
    assert {one["role"] for one in live} == {"status"} and len(live) == 2
    heads = [one for one in nodes if one["role"] == "columnheader"]
    assert len(heads) > 10 and all(one["name"] for one in heads)
    click(page, "b-all")
    asked = [one["name"] for one in page.tree() if one["role"] == "dialog"]
    assert len(asked) == 1 and asked[0].startswith("Accept 18 labels")


def test_tab_goes_over_all_controls_each_with_a_visible_focus(page: Browser) -> None:
    seen: list[str] = []
    wanted = "a, button:not(:disabled), input:not([hidden]), select, summary, .cell[tabindex='0']"
    num_wanted = page.run(f"[...document.querySelectorAll({wanted!r})].filter((e) => e.checkVisibility()).length")
    for _ in range(num_wanted + 8):
        page.press("Tab")
        key, outline, width = page.run(
            "(e => { const s = getComputedStyle(e); return [e.id || e.className || e.tagName + e.textContent.slice(0, 20),"
            " s.outlineStyle, parseFloat(s.outlineWidth)]; })(document.activeElement)"
        )
        if page.run("document.activeElement === document.body"):
            break
        assert outline == "solid" and width >= 2, key
        seen.append(key)
    assert {"theme", "f-text", "f-sort", "b-all", "b-open", "b-save", "cell", "b-abstain", "c-input"} <= set(seen)
    assert len(seen) == num_wanted and len(set(seen)) == len(seen)


def test_a_button_that_goes_dead_under_the_finger_hands_its_focus_to_the_list(page: Browser) -> None:
    page.run("document.querySelector('.cell').click()")
    page.press("End")
    page.press("p")
    page.run("document.getElementById('b-accept').focus()")
    page.press("Enter")  # on the last label; after it comes a failure, which has none to accept
    assert page.run("document.getElementById('b-accept').disabled")
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("failed: image")


def test_a_run_of_no_regions_and_one_of_one_have_whole_pages(browser: Browser, tmp_path: Path) -> None:
    plan = PlanSummary(num_shards=1, num_images=1, num_regions=0, sha256="b" * 64)
    none = RunDirectory.create_or_resume(Store.open(tmp_path / "none" / "run"), manifest(plan=plan))
    none.commit(shard_result(0, num_images=1))
    none.merge()
    one = shard_result(0, num_images=1)
    one = type(one)(index=0, images=(image_row(1),), outcomes=(label(region("1", 1)),))
    committed_run(tmp_path / "one" / "run", [one]).merge()
    for name in ("none", "one"):
        write_report(str(tmp_path / name / "run"))
    browser.events.clear()
    browser.open((tmp_path / "none" / "run" / "report.html").as_uri())
    browser.wait("document.readyState === 'complete'")
    assert "The run has none." in browser.run("document.body.textContent")
    opened(browser, tmp_path / "one")
    assert text(browser, "g-count") == "1 of 1 regions shown"
    browser.run("document.querySelector('.cell').click()")
    browser.press("a")
    assert saved(browser) == {"1": "accept"} and browser.complaints() == []
