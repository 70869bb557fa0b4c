"""`rlabel label --propose`: regions found first, as a setting like any other; planned, measured, gone on with, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

import rlabel.run.propose_worker as propose_worker
from rlabel.cli.main import main
from rlabel.config import LabelSettings, load_settings
from rlabel.errors import UsageError
from rlabel.run.estimate import Measured, costs
from rlabel.run.job import LabelJob
from rlabel.run.manifest import PlanSummary
from rlabel.run.proposals import settings_of_proposals
from rlabel.run.propose_estimate import ProposedSample


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def last(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return document


@pytest.fixture
def words(tmp_path: Path) -> tuple[str | Path, ...]:
    """A command on a folder with two pictures, one of which is none; its settings in a file."""
    folder = tmp_path / "in"
    folder.mkdir()
    drawn = Image.new("RGB", (120, 90), (128, 128, 128))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((20, 20, 49, 49), fill=(220, 30, 30))
    pen.rectangle((70, 40, 99, 79), fill=(30, 40, 200))
    drawn.save(folder / "a.png")
    (folder / "bad.png").write_bytes(b"no picture")
    (tmp_path / "names.txt").write_text("ball\nbrick\n")
    (tmp_path / "label.yaml").write_text("propose: embedded\nno_ray: true\nthreshold: -1\nmax_proposals: 7\n")
    given = ("--config", tmp_path / "label.yaml", "--vocabulary", tmp_path / "names.txt", "--out", tmp_path / "run")
    return ("label", "--images", folder, *given)


def test_a_run_finds_its_regions_first_and_does_so_once(
    words: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*words)
    assert first.exit_code == 0, first.output
    said = last(first)
    assert said["proposed"] == str(tmp_path / "run-regions" / "regions.json") and said["pictures_failed"] == 1
    found = json.loads(Path(said["proposed"]).read_text())["annotations"]
    assert 0 < said["regions"] == len(found) <= 7
    labels = (tmp_path / "run" / "labels.json").read_bytes()
    assert json.loads(labels)["annotations"][0]["attributes"]["status"] == "labeled"

    def never(*_: object) -> None:
        raise AssertionError("looked at once more")

    monkeypatch.setattr(propose_worker.ProposeWorker, "__init__", never)
    again = run(*words)
    assert again.exit_code == 0 and last(again)["regions"] == said["regions"], again.output
    assert (tmp_path / "run" / "labels.json").read_bytes() == labels
    planned = run(*words, "--dry-run")
    assert planned.exit_code == 0 and last(planned)["regions"] == said["regions"], (
        "those that are there are planned with"
    )
    for more in ((), ("--dry-run",)):
        other = run(*words, "--max-proposals", "5", *more)
        assert other.exit_code == 2 and "settings.max_per_image (--max-proposals): 7 -> 5" in other.stderr


def test_a_plan_says_what_is_known_before_there_are_regions(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    said = last(result)
    assert (said["images"], said["regions"], said["regions_at_most"], said["proposer"]) == (2, None, 14, "embedded")
    assert "at most 7 regions a picture" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before, "a plan writes nothing"


def test_a_measured_plan_finds_and_labels_a_sample(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run(*words, "--dry-run", "--measure", "2")
    assert result.exit_code == 0, result.output
    said = last(result)
    assert said["proposing"]["images"] == 2 and said["proposing"]["failures"] == 1
    assert said["regions_expected"] == said["proposing"]["regions"] == said["measured"][0]["regions"] > 0
    assert said["proposing"]["seconds_per_image"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_cost_is_that_of_finding_and_labeling() -> None:
    settings = LabelSettings(images="in", propose="embedded", vocabulary="v", out="o", images_per_shard=10)
    plan = PlanSummary(num_shards=1, num_images=5, num_regions=50, sha256="")
    job: Any = type("Job", (), {"settings": settings, "plan": plan})()
    assert LabelJob  # what stands here for one has all that is asked of it
    row = Measured(precision="float32", device="cpu", load_s=30.0, label_s=100.0, regions=50, images=5)
    sample = ProposedSample(
        pictures=5, of_pictures=100, regions=50, failures=0, device="cpu", load_s=6.0, propose_s=10.0
    )
    assert sample.regions_expected == 1000
    one, two, *_, eight = costs(row, job, None, sample)
    # 6 + 100 pictures of 2 s, then 30 + 1000 regions of 2 s.
    assert one.hours * 3600 == pytest.approx(2236) and one.device_hours == one.hours
    assert two.hours * 3600 == pytest.approx(6 + 100 + 30 + 1000)
    assert eight.hours * 3600 == pytest.approx(6 + 25 + 30 + 250) and eight.device_hours == 8 * eight.hours
    # Hours of a processor are no hours of the GPU that labels.
    on_gpu = Measured(precision="float32", device="cuda:0", load_s=30.0, label_s=100.0, regions=50, images=5)
    assert costs(on_gpu, job, None, sample)[0].device_hours * 3600 == pytest.approx(2030)


def test_what_is_wrong_with_the_labeling_is_said_before_anything_is_looked_at(
    words: tuple[str | Path, ...], tmp_path: Path
) -> None:
    for more, what in (("--vocabulary", "none.txt"), ("--model", "no-model")):
        result = run(*words, more, tmp_path / what)
        assert result.exit_code == 1 and what in result.stderr, result.output
    result = run(*words, "--images", tmp_path / "photos")
    assert result.exit_code == 1 and "photos: no such folder. Give the folder of the pictures." in result.stderr
    assert "--regions" not in result.stderr
    assert not (tmp_path / "run-regions").exists()


def test_regions_come_from_a_file_or_are_found() -> None:
    needed = {"images": "i", "vocabulary": "v", "out": "o/"}
    with pytest.raises(UsageError, match="--regions: missing.* or --propose"):
        load_settings(LabelSettings, None, needed)
    with pytest.raises(UsageError, match="--regions r.json: got --propose"):
        load_settings(LabelSettings, None, {**needed, "regions": "r.json", "propose": "embedded"})
    with pytest.raises(UsageError, match="--max-proposals: it is of --propose"):
        load_settings(LabelSettings, None, {**needed, "regions": "r.json", "max_proposals": 5})
    assert (
        load_settings(LabelSettings, None, {**needed, "propose": "embedded"}).regions_file == "o-regions/regions.json"
    )
    with pytest.raises(UsageError, match="its regions would lie in --images"):
        settings_of_proposals(LabelSettings(images="o-regions", vocabulary="v", out="o", propose="embedded"))


def test_what_says_how_sure_a_label_is_says_nothing_of_a_region() -> None:
    label = LabelSettings(
        images="i",
        vocabulary="v",
        out="o",
        propose="embedded",
        min_score=0.9,
        images_per_shard=9999,
        num_actors=3,
        limit=4,
    )
    own = settings_of_proposals(label)
    assert (own.min_score, own.images_per_shard, own.num_actors, own.limit) == (None, 4096, 3, 4)
    assert own.out == "o-regions" and own.vocabulary is None
