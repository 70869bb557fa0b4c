"""One static page of a run, readable offline: numbers, tables and drawn pictures in a single HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from rlabel.errors import InputError
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.records import Evaluation
from rlabel.evaluation.text import bounds, interval, named_accuracies, notes, percent
from rlabel.report.sheet import Picture, draw_pictures, run_legend, sheet_to_png
from rlabel.report.summary import RunSummary, summarise_run
from rlabel.storage import Store

REPORT = "report.html"
SHEET = "sheet.png"
_TEMPLATE = "templates/report.html.j2"
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A picture as the page has it. source: a data URL."""

    file_name: str
    counts: str
    description: str
    width_px: int
    height_px: int
    source: str


def write_report(
    run_url: str,
    images_url: str | None = None,
    truth_url: str | None = None,
    evaluation: Evaluation | None = None,
    max_images: int = 12,
) -> tuple[str, ...]:
    """Write report.html, and sheet.png if there are pictures, into the run's folder and return their full paths.

    Without images_url, or when none of its pictures can be opened, the page has no pictures and says so. With a
    truth_url and no evaluation the run is evaluated here. The same run gives the same bytes.
    Raises InputError when the run's or the truth's files cannot be read.
    """
    store = Store.open(run_url)
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
    page = render_page(name, summarise_run(run_url), evaluation, pictures, truth_url is not None, no_pictures_because)
    written = [REPORT]
    if pictures:
        store.put(SHEET, sheet_to_png(pictures, run_legend(is_judged=truth_url is not None)))
        written.append(SHEET)
    store.put(REPORT, page.encode("utf-8", "replace"))
    return tuple(store.join(path) for path in written)


def render_page(
    run_name: str,
    summary: RunSummary,
    evaluation: Evaluation | None,
    pictures: Sequence[Picture],
    is_judged: bool,
    no_pictures_because: str,
) -> str:
    """Return the page. Everything that comes from the model or a file is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["bounds"] = bounds
    template = environment.from_string(files("rlabel.report").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        run_name=run_name,
        summary=summary,
        evaluation=evaluation,
        accuracies=[(name, a, interval(a)) for name, a in named_accuracies(evaluation)] if evaluation else [],
        notes=notes(evaluation) if evaluation else [],
        pictures=[_shown(picture) for picture in pictures],
        is_judged=is_judged,
        no_pictures_because=no_pictures_because,
    )


def _shown(picture: Picture) -> _Shown:
    stream = io.BytesIO()
    picture.image.save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return _Shown(
        file_name=picture.file_name,
        counts=picture.counts,
        description=picture.description,
        width_px=picture.image.width,
        height_px=picture.image.height,
        source="data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"),
    )
