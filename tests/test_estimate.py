"""`rlabel label --dry-run --measure`: the sample, the arithmetic of hours, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from label_factories import Outcome, Setup, rlabel_here, save_model
from rlabel.config import LabelSettings
from rlabel.errors import UsageError
from rlabel.records import Failure, ImageRecord, Label, Region, Shard, Snap
from rlabel.run import estimate
from rlabel.run.estimate import Measured, costs, precision_name, sample, settings_at

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("estimate")
    return Setup(folder, save_model(folder / "model"), NUM_IMAGES)


class FakeJob:
    """A plan of empty pictures; all that sampling and arithmetic ask of a job."""

    def __init__(self, num_images: int, regions_per_image: int = 2, **settings: Any) -> None:
        self.settings = LabelSettings(images="i", regions="r", out="o", vocabulary="v", images_per_shard=4, **settings)
        images = [
            ImageRecord(
                row={"id": number},
                file_name=f"{number}.png",
                width_px=None,
                height_px=None,
                regions=tuple(
                    Region(key=f"{number}/{own}", region_id=own, annotation_id=None) for own in range(regions_per_image)
                ),
            )
            for number in range(num_images)
        ]
        self._shards = [
            Shard(index=start // 4, content_sha256="", images=tuple(images[start : start + 4]))
            for start in range(0, num_images, 4)
        ]
        self.num_read = 0
        self.plan = self
        self.manifest = self
        self.unit = "regions"
        self.num_images, self.num_regions = num_images, num_images * regions_per_image
        self.num_shards = len(self._shards)

    def shards(self) -> Any:
        for shard in self._shards:
            self.num_read += 1
            yield shard


def measured(setup: Setup, out: Path, *more: str, **options: object) -> Outcome:
    return rlabel_here("label", [*setup.arguments(out, no_ray=True, dry_run=True, **options), *more])


@pytest.mark.parametrize(("total", "wanted"), [(100, 5), (101, 7), (3, 9), (8, 8), (1, 1)])
def test_the_sample_has_one_image_of_each_part_of_the_plan(total: int, wanted: int) -> None:
    job: Any = FakeJob(total)
    chosen = [image.row["id"] for image in sample(job, wanted)]
    parts = min(total, wanted)
    assert len(chosen) == parts
    for part, place in enumerate(chosen):
        assert part * total // parts <= place < (part + 1) * total // parts  # type: ignore[operator]
    assert [image.row["id"] for image in sample(job, wanted)] == chosen


def test_what_comes_after_the_last_image_of_the_sample_is_not_read() -> None:
    job: Any = FakeJob(400)
    (image,) = sample(job, 1)
    assert job.num_read == int(str(image.row["id"])) // 4 + 1 < 100


def test_hours_are_the_load_and_a_share_of_the_regions() -> None:
    # 3,600 regions at half a second: 1,800 s of one actor, and 36 s to load.
    job: Any = FakeJob(1800, cpus_per_actor=3)
    row = Measured(precision="float32", load_s=36.0, label_s=10.0, regions=20)
    one, two, _, eight = costs(row, job, 2.0)
    assert one.hours == pytest.approx((36 + 1800) / 3600) and one.device_hours == pytest.approx(3 * 1836 / 3600)
    assert two.hours == pytest.approx((36 + 900) / 3600) and two.price == pytest.approx(2.0 * 2 * 3 * 936 / 3600)
    assert eight.device_hours == pytest.approx(8 * 3 * (36 + 225) / 3600)


def test_an_actor_without_a_shard_is_not_counted() -> None:
    job: Any = FakeJob(8)  # two shards
    _, two, four, eight = costs(Measured(precision="float32", load_s=1, label_s=10.0, regions=20), job, None)
    assert (four.hours, eight.device_hours) == (two.hours, two.device_hours) and eight.price is None


@pytest.mark.parametrize(("asked", "gpus"), [(-1.0, 1.0), (0.5, 0.5), (2.0, 2.0)])
def test_gpu_hours_count_gpus_and_not_threads(asked: float, gpus: float) -> None:
    job: Any = FakeJob(1800, gpus_per_actor=asked, cpus_per_actor=6)
    row = Measured(precision="bfloat16", device="cuda", label_s=10.0, regions=20)
    assert costs(row, job, None)[1].device_hours == pytest.approx(2 * gpus * 900 / 3600)
    assert "gpu_hours" in json.dumps(estimate.estimate_to_json(row, costs(row, job, None)))


def test_the_interval_is_that_of_a_ratio() -> None:
    # Residuals of the ratio 0.5 are +1, -1, 0: variance 2 / (3 * 2), over a mean of 4 regions; t(0.975, 2) = 4.302653.
    assert estimate._margin([3.0, 1.0, 2.0], [4, 4, 4]) == pytest.approx(4.302653 * (1 / 3) ** 0.5 / 4, rel=1e-6)
    assert estimate._margin([2.0, 4.0, 1.0], [4, 8, 2]) == pytest.approx(0.0)
    assert estimate._margin([2.0, 4.0], [4, 8]) is None


def test_precisions_change_only_the_precision() -> None:
    settings = LabelSettings(images="i", regions="r", out="o", vocabulary="v", dtype="bfloat16", quantization="int8")
    made = settings_at(settings, ["float32", "float16", "nf4"])
    assert [precision_name(one) for one in made] == ["float32", "float16", "nf4, bfloat16"]
    assert all(one.model_copy(update={"dtype": "bfloat16", "quantization": "int8"}) == settings for one in made)
    assert settings_at(settings, []) == [settings]
    for wrong in (["float32", "fp8"], ["nf4", "nf4"], [""]):
        with pytest.raises(UsageError, match="--measure-precisions .*expected some of float32"):
            settings_at(settings, wrong)
    with pytest.raises(UsageError, match="--compile"):
        settings_at(settings.model_copy(update={"quantization": "none", "compile": True}), ["float32", "nf4"])


def test_a_measured_dry_run_says_hours_and_writes_nothing(setup: Setup, tmp_path: Path) -> None:
    result = measured(
        setup, tmp_path / "out", "--measure", "3", "--measure-precisions", "float32,bfloat16", "--price-per-hour", "2"
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []
    assert "nothing is written" in result.stderr and "CPU-hours" in result.stdout and "to pay" in result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    first, second = said["measured"]
    assert [row["precision"] for row in said["measured"]] == ["float32", "bfloat16"]
    assert (said["images"], said["regions"], first["images"], first["regions"]) == (NUM_IMAGES, 2 * NUM_IMAGES, 3, 6)
    assert first["seconds_per_region"] > 0 and first["same_answers"] is None and 0 <= second["same_answers"] <= 1
    for row in said["measured"]:
        assert [one["actors"] for one in row["actors"]] == [1, 2, 4, 8]
        alone, pair = row["actors"][:2]
        assert alone["hours"] == pytest.approx(
            (row["load_s"] + row["seconds_per_region"] * 2 * NUM_IMAGES) / 3600, rel=1e-2
        )
        assert pair["hours"] < alone["hours"] and pair["cost"] == pytest.approx(2 * pair["cpu_hours"], rel=1e-3)


def test_a_plain_dry_run_ends_with_json_too(setup: Setup, tmp_path: Path) -> None:
    said = json.loads(measured(setup, tmp_path / "out").stdout.splitlines()[-1])
    assert (said["dry_run"], said["unit"], said["shards"]) == (True, "regions", NUM_IMAGES)
    assert "measured" not in said and "<image>" in said["prompt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "2", "--no-dry"], "No such option"),
        (["--measure-precisions", "nf4"], "--measure-precisions: it belongs to --measure N"),
        (["--price-per-hour", "2"], "--price-per-hour: it belongs to --measure N"),
        (["--measure", "0"], "0 is not in the range"),
        (["--measure", "2", "--price-per-hour", "nan"], "nan is no finite number"),
        (["--measure", "2", "--measure-precisions", "fp8"], "got 'fp8'"),
    ],
)
def test_wrong_measurements_are_refused(setup: Setup, tmp_path: Path, options: list[str], message: str) -> None:
    result = measured(setup, tmp_path / "out", *options)
    assert result.returncode == 2 and message in result.stderr and result.stdout == ""


def test_measuring_is_of_dry_runs(setup: Setup, tmp_path: Path) -> None:
    result = rlabel_here("label", [*setup.arguments(tmp_path / "out", no_ray=True), "--measure", "2"])
    assert result.returncode == 2 and "it belongs to --dry-run" in result.stderr and list(tmp_path.iterdir()) == []


def test_a_sample_that_fails_says_why(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = measured(setup, tmp_path / "out", "--measure", "2", images=tmp_path / "empty")
    assert result.returncode == 1 and "all 4 regions of the sample failed" in result.stderr and ".png" in result.stderr


def test_a_sample_without_regions_is_refused(setup: Setup, tmp_path: Path) -> None:
    rows = json.loads((setup.corpus / "regions.json").read_text()) | {"annotations": []}
    (tmp_path / "none.json").write_text(json.dumps(rows))
    result = measured(setup, tmp_path / "out", "--measure", "2", regions=tmp_path / "none.json")
    assert result.returncode == 2 and "has regions to label. Measure more" in result.stderr


class FakeWorker:
    """Says a text of each region; one whose settings ask for nf4 cannot be made."""

    device = "cpu"

    def __init__(self, spec: LabelSettings) -> None:
        if spec.quantization == "nf4":
            raise RuntimeError("no kernel for this machine")
        self.dtype = spec.dtype
        self.labeled: list[str] = []

    def label_only(self, shard: Shard) -> None:
        self.labeled += shard.keys

    def begin(self, shard: Shard) -> Any:
        self.labeled += shard.keys
        return FakeWork(shard, self.dtype)


class FakeWork:
    def __init__(self, shard: Shard, dtype: str) -> None:
        self.shard, self.dtype, self.answered = shard, dtype, False

    def answer(self) -> None:
        self.answered = True

    def close(self) -> None: ...

    def result(self) -> Any:
        assert self.answered
        regions = [region for image in self.shard.images for region in image.regions]
        self.outcomes = [self._outcome(region) for region in regions]
        return self

    def _outcome(self, region: Region) -> Label | Failure:
        if region.region_id == 1:
            return Failure(region=region, image_id=0, kind="image", reason="cut off")
        text = "cat" if self.dtype == "float32" or region.key < "4" else "dog"
        return Label(
            region=region, image_id=0, category_id=1, score=1.0, text=text, text_score=1.0, box_xywh=(0, 0, 1, 1), area_px=1.0,
            snap=Snap(category_id=1, nearest_name="cat", similarity=1.0, margin=1.0, decided_by="exact"), segmentation=None,
        )  # fmt: skip


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlabel.run.worker.LabelWorker", FakeWorker)
    monkeypatch.setattr("rlabel.run.worker.worker_spec", lambda job, run: job.settings)
    monkeypatch.setattr(estimate, "replace", lambda _job, settings: SimpleNamespace(settings=settings))


@pytest.mark.usefixtures("fake_worker")
def test_a_precision_that_cannot_be_had_leaves_the_others() -> None:
    job: Any = FakeJob(8)
    rows = list(estimate.measure(job, 8, settings_at(job.settings, ["float32", "nf4", "bfloat16"])))
    assert [row.problem for row in rows] == [None, "RuntimeError: no kernel for this machine", None]
    assert [(row.regions, row.failures) for row in rows] == [(16, 8), (0, 0), (16, 8)]
    # Half are failures in both; of the other eight, pictures 4 to 7 got another text.
    assert rows[2].same_answers == 12 / 16
    assert estimate.estimate_to_json(rows[1], []) == {"precision": "nf4, float32", "problem": rows[1].problem}


@pytest.mark.usefixtures("fake_worker")
def test_nothing_measured_at_all_ends_with_the_cause() -> None:
    job: Any = FakeJob(8)
    with pytest.raises(estimate.RunError, match="nothing could be measured. RuntimeError: no kernel"):
        list(estimate.measure(job, 2, settings_at(job.settings, ["nf4"])))
