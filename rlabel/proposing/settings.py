"""Settings of `rlabel propose`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rlabel.config import Dtype, Gpus
from rlabel.errors import UsageError
from rlabel.proposing.found import Keeping
from rlabel.records import JsonObject
from rlabel.settings_files import SettingsRecord

EMBEDDED = "embedded"


class ProposeSettings(SettingsRecord):
    """Settings of `rlabel propose`. Paths may be any fsspec URL."""

    schema_name: ClassVar[str] = "propose-settings"

    images: str = Field(description="folder of the pictures")
    out: str = Field(description="run directory, made or continued; OUT/regions.json is what `rlabel label` reads")
    listing: str | None = Field(
        None, description="COCO JSON whose images are taken, with their ids; every picture in the folder if left out"
    )
    proposer: str = Field(
        EMBEDDED,
        description="embedded, which needs no model, or a folder or hub id of SAM, SAM 2, SAM 3's tracker, Grounding DINO, OWLv2 or RT-DETR",
    )
    vocabulary: str | None = Field(None, description="names to look for: of Grounding DINO and OWLv2, which need them")
    names_per_query: int = Field(20, ge=1, le=512, description="of --vocabulary: names that are looked for at once")
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
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="auto: the GPU that Ray gave the actor, else the CPU",
    )
    images_per_shard: int = Field(16, ge=1, le=4096)
    num_actors: int = Field(0, ge=0, description="0: one a GPU of the cluster, or up to 4 on the CPUs of each node")
    gpus_per_actor: Gpus = Field(-1.0, description="-1: 1 where the cluster has GPUs, else 0; embedded takes none")
    cpus_per_actor: int = Field(1, ge=1)
    address: str | None = Field(
        None, description="Ray cluster; a private local Ray if left out and RAY_ADDRESS is unset"
    )
    no_ray: bool = Field(False, description="work in this process")
    max_attempts: int = Field(3, ge=1, le=20)
    shard_timeout_s: float = Field(3600.0, gt=0)
    wait_for_actors_s: float = Field(600.0, gt=0)
    max_failure_rate: float = Field(
        0.5, ge=0, le=1, description="a larger share of failed pictures ends with exit code 3"
    )
    max_pixels: int = Field(
        100_000_000, ge=1, le=178_956_970, description="a picture of more, by its header, is not decoded"
    )
    max_file_bytes: int = Field(2**28, ge=1, description="a picture's file of more is not read")
    isolate_decoders: bool = Field(
        True,
        description="decode pictures in a process of their own: one that crashes its decoder costs that picture alone",
    )
    heartbeat_s: float = Field(10.0, gt=0)
    driver_expiry_s: float = Field(60.0, ge=1, le=3600)

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
