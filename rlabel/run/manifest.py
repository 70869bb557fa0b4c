"""What a run was started with: everything that decides its results, and nothing else.

No clock, host name or path is in it, so the same call gives the same manifest anywhere, and two manifests can be
compared field by field. Knows nothing of shards' contents or of what became of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rlabel.errors import RunError
from rlabel.records import JsonObject, JsonValue, Shard
from rlabel.run.canonical import canonical_bytes, canonical_sha256, json_safe
from rlabel.schema_files import validate

if TYPE_CHECKING:
    from rlabel.corpus.sharding import PlannedShard

FORMAT_VERSION = 1
# What a run of each task has one outcome for each of.
UNITS = {
    "classify": "regions",
    "caption": "regions",
    "describe": "regions",
    "relate": "pairs",
    "refer": "expressions",
    "propose": "pictures",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSummary:
    """The corpus of a run. sha256: hex digest of its canonical content."""

    sha256: str
    num_images: int
    num_regions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """The shard plan of a run: what of the corpus it takes (all, or the first images under --limit), and how it is cut.

    num_regions: outcomes that the run ends with: one a region, or one a pair or expression where the task asks of those.
    sha256: hex digest of the shards' content digests, in order, one a line.
    """

    num_shards: int
    num_images: int
    num_regions: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that decides the bytes of labels.json.

    settings: flat; what changes results (model fingerprint, prompt, quantization, vocabulary digest, threshold, ...).
    categories: the vocabulary's rows, to be written verbatim.
    header: the corpus file's top-level keys to be kept (info, licenses, ...), verbatim.
    """

    rlabel_version: str
    settings: JsonObject
    corpus: CorpusSummary
    plan: PlanSummary
    categories: tuple[JsonObject, ...]
    header: JsonObject = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def task(self) -> str:
        """Return the task of the run, a key of UNITS. Raises RunError for one that this rlabel does not know."""
        task = str(self.settings.get("task", "classify"))
        if task not in UNITS:
            raise RunError(
                f"manifest.json: expected a task of {', '.join(UNITS)}, got {task!r}. Use the rlabel that began this run."
            )
        return task

    @property
    def unit(self) -> str:
        """Return what the run has one outcome for each of: regions, pairs or expressions."""
        return UNITS[self.task]

    @property
    def fingerprint(self) -> str:
        """Return the hex SHA-256 of the whole manifest: equal fingerprints promise equal labels."""
        return canonical_sha256(_to_json(self))


def plan_summary(shards: Iterable[Shard | PlannedShard]) -> PlanSummary:
    """Return the summary of a plan, from its shards in order, one at a time in memory."""
    digest = hashlib.sha256()
    num_shards = num_images = num_regions = 0
    for shard in shards:
        digest.update(shard.content_sha256.encode("ascii") + b"\n")
        num_shards += 1
        num_images += shard.num_images
        num_regions += shard.num_regions
    return PlanSummary(num_shards=num_shards, num_images=num_images, num_regions=num_regions, sha256=digest.hexdigest())


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Return manifest.json, indented for people; its fingerprint is in it."""
    document: JsonObject = {**_to_json(manifest), "fingerprint": manifest.fingerprint}
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def manifest_from_bytes(data: bytes, where: str) -> Manifest:
    """Return the manifest of a manifest.json.

    Raises RunError when it is damaged or of another format; the labels of such a run cannot be continued.
    """
    remedy = "Restore the file, or start anew with another --out."
    try:
        document = json.loads(data)
        validate(document, "manifest", where)
        manifest = Manifest(
            rlabel_version=document["rlabel_version"],
            settings=document["settings"],
            corpus=CorpusSummary(**document["corpus"]),
            plan=PlanSummary(**document["plan"]),
            categories=tuple(document["categories"]),
            header=document["header"],
            format_version=document["format_version"],
        )
    except Exception as error:
        raise RunError(f"{where}: expected a run's manifest, got something else ({error}). {remedy}") from error
    if manifest.fingerprint != document["fingerprint"]:
        raise RunError(
            f"{where}: its content does not match its fingerprint: expected {document['fingerprint']}, got "
            f"{manifest.fingerprint}; it was edited or damaged. {remedy}"
        )
    return manifest


def differing_fields(old: Manifest, new: Manifest) -> list[str]:
    """Return one readable line "field: old -> new" for every field in which two manifests differ, sorted."""
    old_fields, new_fields = _flat(_to_json(old)), _flat(_to_json(new))
    return [
        f"{name}: {_shown(old_fields.get(name))} -> {_shown(new_fields.get(name))}"
        for name in sorted(old_fields.keys() | new_fields.keys())
        if name not in old_fields or name not in new_fields or old_fields[name] != new_fields[name]
    ]


def _to_json(manifest: Manifest) -> JsonObject:
    # Through JSON once, so that a tuple and the list read back from the file are the same value.
    document = json.loads(canonical_bytes(json_safe(_listed(asdict(manifest)))))
    assert isinstance(document, dict)
    return document


def _listed(value: object) -> JsonValue:
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _listed(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"manifest: expected JSON values, got {type(value).__name__}: {value!r}")


def _flat(document: JsonObject) -> dict[str, str]:
    """Return canonical JSON text by dotted field name; categories and header count as one field each."""
    fields: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict) and name != "header":
            for key, item in value.items():
                fields[f"{name}.{key}"] = canonical_bytes(item).decode()
        else:
            fields[name] = canonical_bytes(value).decode()
    return fields


def _shown(text: str | None) -> str:
    if text is None:
        return "(absent)"
    if len(text) <= 100:
        return text
    return f"{text[:60]}... ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"
