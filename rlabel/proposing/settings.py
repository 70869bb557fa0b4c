"""Settings of `rlabel propose`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rlabel.config import Dtype
from rlabel.errors import UsageError
from rlabel.pool_settings import PoolSettings
from rlabel.proposing.found import Keeping
from rlabel.records import JsonObject

EMBEDDED = "embedded"


class ProposeSettings(PoolSettings):
    """Settings of `rlabel propose`. Paths may be any fsspec URL."""

    schema_name: ClassVar[str] = "propose-settings"

    images: str = Field(description="folder of the pictures")
    out: str = Field(description="run directory, made or continued; OUT/regions.json is what `rlabel label` reads")
    listing: str | None = Field(
        None, description="COCO JSON whose images are taken, with their ids; every picture in the folder if left out"
    )
    proposer: str = Field(
        EMBEDDED,
        description="embedded, which needs no model and no GPU, or a folder or hub id of SAM, SAM 2, SAM 3, Grounding DINO, OWLv2 or RT-DETR",
    )
    vocabulary: str | None = Field(
        None,
        description="names to look for: of Grounding DINO and OWLv2, which need them; SAM 3 finds masks of them instead of all that it can",
    )
    names_per_query: int = Field(
        20, ge=1, le=512, description="of --vocabulary: names that are looked for at once; SAM 3 takes at most 8"
    )
    prompts: str | None = Field(
        None, description="of SAM: JSON list of {image_id or file_name, points, labels, scribbles, boxes}; a mask each"
    )
    points_per_side: int = Field(32, ge=1, le=256, description="of SAM: points of the grid along a side")
    points_per_batch: int = Field(64, ge=1, le=4096, description="of SAM: points that are asked at once")
    crop_layers: int = Field(0, ge=0, le=3, description="of SAM: layer n looks at 4^n overlapping crops as well")
    min_predicted_iou: float = Field(0.88, ge=0, le=1, description="of SAM: least quality that it gives its own mask")
    min_stability: float = Field(
        0.92, ge=0, le=1, description="of SAM: least IoU of a mask with itself at a lower and a higher threshold"
    )

    min_score: float | None = Field(
        None, ge=0, le=1, description="least score; if left out that of the kind of proposer"
    )
    min_share: float = Field(0.0005, ge=0, le=1, description="least share of the picture's area")
    max_share: float = Field(0.6, gt=0, le=1, description="largest share of the picture's area")
    nms_iou: float = Field(
        0.6, gt=0, le=1, description="of two regions that overlap more the lower score goes; 1 keeps both"
    )
    max_per_image: int = Field(100, ge=1, le=2000, description="the best so many of a picture")

    limit: int | None = Field(None, ge=0, description="only the first N pictures")
    dtype: Dtype = "float32"
    images_per_shard: int = Field(16, ge=1, le=4096)

    def check(self) -> None:
        """Raise UsageError for settings that do not go together."""
        if self.min_share >= self.max_share:
            raise UsageError(
                f"--min-share {self.min_share}: expected less than --max-share {self.max_share}. Leave one of them out."
            )
        if self.proposer == EMBEDDED:
            for name in ("vocabulary", "prompts"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: the embedded proposer takes none. Leave it out, or give a model with --proposer."
                    )

    def keeping(self, own_min_score: float) -> Keeping:
        """Return which regions are kept. own_min_score: of the kind of proposer, where the settings name none."""
        return Keeping(
            min_share=self.min_share,
            max_share=self.max_share,
            min_score=own_min_score if self.min_score is None else self.min_score,
            nms_iou=self.nms_iou,
            max_per_image=self.max_per_image,
        )

    def deciding(self) -> JsonObject:
        """Return the settings that decide what is written; where work runs, and how often it is tried, does not."""
        names = (
            "min_score", "min_share", "max_share", "nms_iou", "max_per_image", "limit", "images_per_shard", "max_pixels",
            "max_file_bytes",
        )  # fmt: skip
        values: JsonObject = {"task": "propose", **{name: getattr(self, name) for name in names}}
        if self.proposer != EMBEDDED:
            of_models = (
                "names_per_query", "points_per_side", "points_per_batch", "crop_layers", "min_predicted_iou", "min_stability",
                "dtype", "device", "cpus_per_actor",
            )  # fmt: skip
            values |= {name: getattr(self, name) for name in of_models}
        return values
