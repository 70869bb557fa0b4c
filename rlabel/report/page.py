"""One static page of a run, readable offline: numbers, tables and drawn pictures in one HTML file, and the gallery's data in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import jinja2

from rlabel.errors import InputError, UsageError
from rlabel.evaluation.auditing import Audit, audit_run
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.records import CategoryRow, Evaluation, RiskPoint, ScoreWorth
from rlabel.evaluation.text import bounds, interval, named_accuracies, notes, percent
from rlabel.report.charts import DARK, LIGHT, reliability_svg, risk_svg
from rlabel.report.gallery import DEFAULT_MAX_REGIONS, DEFAULT_MAX_THUMBS, Gallery, write_gallery
from rlabel.report.sheet import Picture, draw_pictures, run_legend, sheet_to_png
from rlabel.report.summary import RunSummary, summarise_run
from rlabel.report.worst import NUM_DRAWN, WorstCase, draw_cases, surest_wrong
from rlabel.run.directory import MANIFEST, RunDirectory
from rlabel.storage import Store

REPORT = "report.html"
SHEET = "sheet.png"
_TEMPLATE = "report.html.j2"
_JPEG_QUALITY = 85
_MAX_CATEGORIES = 300  # rows of a table on the page
_NUM_RISKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A picture as the page has it. source: a data URL."""

    file_name: str
    counts: str
    description: str
    width_px: int
    height_px: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    """A curve for light and for dark paper, as data URLs; its numbers are in a table beside it."""

    light: str
    dark: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCases:
    """What the page says of contradicted labels: the audit, the surest of them, and others that are likeliest the truth's own mistakes."""

    audit: Audit
    surest: Sequence[WorstCase]
    suspicious: Sequence[WorstCase]


def write_report(
    run_url: str,
    images_url: str | None = None,
    truth_url: str | None = None,
    evaluation: Evaluation | None = None,
    max_images: int = 12,
    *,
    out_url: str | None = None,
    max_regions: int = DEFAULT_MAX_REGIONS,
    max_thumbs: int | None = DEFAULT_MAX_THUMBS,
    beat: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Write report.html, the folder report/ and, if there are pictures, sheet.png; return the full paths of the page and the sheet.

    Without images_url, or when none of its pictures can be opened, the page has no pictures and says so. With a
    truth_url and no evaluation the run is evaluated here; with one the run is audited, too. The same run gives the same bytes.
    out_url: the folder to write into, the run's own if left out. max_regions, max_thumbs, beat: of the gallery, see
    `write_gallery`.
    Raises InputError when the run's or the truth's files cannot be read, UsageError for a max_regions below 1, RunError for a
    damaged run directory.
    """
    if max_regions < 1:
        raise UsageError(f"--max-regions: expected a whole number of at least 1, got {max_regions}.")
    store = Store.open(run_url)
    out = store if out_url is None else Store.open(out_url)
    if evaluation is None and truth_url is not None:
        evaluation = evaluate_run(run_url, truth_url)
    pictures: list[Picture] = []
    no_pictures_because = "no image folder was given"
    if images_url is not None:
        try:
            pictures = draw_pictures(run_url, images_url, truth_url, max_images)
        except InputError as error:
            no_pictures_because = str(error)
    name = store.url.rstrip("/").rsplit("/", 1)[-1]
    worst = None if truth_url is None else _worst_cases(run_url, truth_url, images_url if pictures else None)
    summary = summarise_run(run_url)
    gallery = None
    if store.exists(MANIFEST) and RunDirectory.open(store).committed():  # some keep labels.json alone
        images = Store.open(images_url) if images_url is not None and pictures else None
        gallery = write_gallery(RunDirectory.open(store), out, images, truth_url, max_regions, max_thumbs, beat)
    page = render_page(name, summary, evaluation, pictures, truth_url is not None, no_pictures_because, worst, gallery)
    written = [REPORT]
    if pictures:
        out.put(SHEET, sheet_to_png(pictures, run_legend(is_judged=truth_url is not None)))
        written.append(SHEET)
    out.put(REPORT, page.encode("utf-8", "replace"))
    return tuple(out.join(path) for path in written)


def render_page(
    run_name: str,
    summary: RunSummary,
    evaluation: Evaluation | None,
    pictures: Sequence[Picture],
    is_judged: bool,
    no_pictures_because: str,
    worst: WorstCases | None = None,
    gallery: Gallery | None = None,
) -> str:
    """Return the page. Everything that comes from the model or a file is escaped.

    Its policy lets nothing run or load but its own style and scripts, named by their hashes, and what lies beside it:
    'self' for a server, file: for a page on disk, whose origin some browsers do not count as 'self'.
    """
    loader = jinja2.PackageLoader("rlabel.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css, theme_js, list_js, review_js = (
        loader.get_source(environment, name)[0] for name in ("report.css", "theme.js", "gallery.js", "review.js")
    )
    gallery_js = f'(() => {{\n"use strict";\n{list_js}{review_js}}})();\n'  # two files, one scope
    environment.filters["percent"] = percent
    environment.filters["bounds"] = bounds
    environment.filters["plain"] = "{:,}".format
    scores = None if evaluation is None else evaluation.scores
    return environment.get_template(_TEMPLATE).render(
        css=css,
        theme_js=theme_js,
        gallery_js=gallery_js,
        policy=(
            f"default-src 'none'; style-src {_source(css)}; img-src 'self' file: data:; base-uri 'none'; form-action 'none'; "
            f"script-src 'self' file: {_source(theme_js)} {_source(gallery_js)}"
        ),
        gallery=gallery,
        score_bins=_score_bins(summary),
        run_name=run_name,
        summary=summary,
        evaluation=evaluation,
        accuracies=[(name, a, interval(a)) for name, a in named_accuracies(evaluation)] if evaluation else [],
        notes=notes(evaluation) if evaluation else [],
        pictures=[_shown(picture) for picture in pictures],
        is_judged=is_judged,
        no_pictures_because=no_pictures_because,
        unmatched=_unmatched(summary, evaluation),
        scores=scores,
        charts=[] if scores is None else _charts(scores),
        risks=[] if scores is None else _risks(scores),
        categories=_worst_categories(evaluation.per_category) if evaluation else [],
        worst=worst,
        surest=[(case.suspect, _shown_case(case), case.no_picture_because) for case in worst.surest] if worst else [],
        suspicious=[(case.suspect, _shown_case(case), case.no_picture_because) for case in worst.suspicious]
        if worst
        else [],
    )


def _source(text: str) -> str:
    """Return how a content security policy names an inline style or script: by the hash of what is between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _score_bins(summary: RunSummary) -> list[tuple[float, int, float]]:
    """Return (low bound, labels, bar's length in [0, 1]) of each bin of scores, the highest first."""
    counts = summary.score_bins
    most = max(1, *counts)
    return [(index / len(counts), count, count / most) for index, count in enumerate(counts)][::-1]


def _unmatched(summary: RunSummary, evaluation: Evaluation | None) -> list[tuple[str, str, str, int]]:
    """Return (answer, nearest name, what such regions mostly are, how many); the third is known with a truth only, and then of its regions only."""
    if evaluation is None:
        return [(row.name, row.detail, "", row.num_regions) for row in summary.unmatched_texts]
    return [(row.text, row.nearest_name or "", row.true_name, row.num_regions) for row in evaluation.unmatched_texts]


def _worst_cases(run_url: str, truth_url: str, images_url: str | None) -> WorstCases:
    audit = audit_run(run_url, truth_url)
    surest = surest_wrong(audit)
    shown = {(suspect.image_id, suspect.region_id) for suspect in surest}
    others = tuple(islice((s for s in audit.suspects if (s.image_id, s.region_id) not in shown), NUM_DRAWN))
    return WorstCases(
        audit=audit,
        surest=draw_cases(surest, run_url, truth_url, images_url),
        suspicious=draw_cases(others, run_url, truth_url, images_url),
    )


def _charts(scores: ScoreWorth) -> list[_Chart]:
    worth = scores.reliability
    drawn = (
        (
            reliability_svg,
            f"Reliability diagram: in {len(worth.bins)} bins of scores, the share of labels that is right against their mean score. "
            f"Expected calibration error {worth.ece:.3f}.",
        ),
        (
            risk_svg,
            f"Risk-coverage curve: the wrong share of the surest labels. Area {worth.aurc:.3f}; all labels: {percent(1 - worth.accuracy)} wrong.",
        ),
    )
    return [
        _Chart(
            light=_data_url("image/svg+xml", draw(scores, LIGHT)),
            dark=_data_url("image/svg+xml", draw(scores, DARK)),
            description=description,
        )
        for draw, description in drawn
    ]


def _risks(scores: ScoreWorth) -> list[RiskPoint]:
    """Return about ten points of the curve, the last of all labels."""
    step = max(1, len(scores.curve) // _NUM_RISKS)
    return list(scores.curve[::-1][::step][::-1])


def _worst_categories(rows: Sequence[CategoryRow]) -> list[CategoryRow]:
    """Return the rows of the page, the least often right first."""
    ordered = sorted(rows, key=lambda row: (1.0 if row.top1 is None else row.top1, -row.num_regions, row.name))
    return ordered[:_MAX_CATEGORIES]


def _shown_case(case: WorstCase) -> _Shown | None:
    return None if case.picture is None else _shown(case.picture)


def _shown(picture: Picture) -> _Shown:
    stream = io.BytesIO()
    picture.image.save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return _Shown(
        file_name=picture.file_name,
        counts=picture.counts,
        description=picture.description,
        width_px=picture.image.width,
        height_px=picture.image.height,
        source=_data_url("image/jpeg", stream.getvalue()),
    )


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
