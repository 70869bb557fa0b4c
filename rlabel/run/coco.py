"""Outcomes as rows of the files people read: COCO annotations, relations, choices, results rows, lines of abstained and failures.jsonl.

One pure function a row. What other readers of COCO demand is written beside the line that gives it to them.
"""

from __future__ import annotations

import re

from rlabel.records import (
    Abstention,
    BoxXywh,
    Caption,
    Evidence,
    Failure,
    JsonObject,
    JsonValue,
    Label,
    Place,
    QueryFailure,
    Referral,
    Relation,
)
from rlabel.run.canonical import canonical_bytes, json_safe, object_of
from rlabel.run.manifest import Manifest
from rlabel.run.query_io import query_to_json
from rlabel.vocabulary.scores import candidate_share

# Keys of an input row that never come back: ours, what must not be taken over from a labeled input, and names that
# FiftyOne keeps for itself on a label (an attribute of that name would replace its own field).
_OWN_KEYS = frozenset(
    {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "score", "attributes"}
)
_NOT_TAKEN_OVER = frozenset({"caption", "label", "confidence", "mask", "bounding_box", "tags"})
DROPPED_KEYS = _OWN_KEYS | _NOT_TAKEN_OVER


def label_to_annotation(label: Label, annotation_id: int, run_id: str) -> JsonObject:
    """Return one label as a COCO annotation.

    Always with id, area and iscrowd: COCOeval raises KeyError without them. iscrowd is 0 also for what was a crowd in
    the input: evaluation ignores crowd ground truth. Values of `attributes` are scalars, which CVAT and datumaro keep.
    """
    own_attributes: JsonObject = {
        "region_id": label.region.region_id,
        "status": "labeled",
        "text": label.text,
        "text_score": label.text_score,
        "similarity": label.snap.similarity,
        "margin": label.snap.margin,
        "decided_by": label.snap.decided_by,
        **_evidence_attributes(label.evidence),
        **({} if label.raw_score is None else {"raw_score": label.raw_score}),
        "run_id": run_id,
    }
    return {
        **_annotation(label, annotation_id, own_attributes),
        "category_id": label.category_id,
        "score": label.score,
    }


def caption_to_annotation(caption: Caption, annotation_id: int, run_id: str) -> JsonObject:
    """Return one caption as an annotation of COCO's captions, with the region that it is about as in labels.json."""
    return {
        **_annotation(caption, annotation_id, {"region_key": caption.region.key, "run_id": run_id}),
        "region_id": caption.region.region_id,
        "caption": caption.text,
        "score": caption.score,
    }


def relation_to_row(relation: Relation, row_id: int, run_id: str) -> JsonObject:
    """Return one relation as a row of relations.json: subject, predicate, object."""
    return {
        "id": row_id,
        "image_id": relation.image_id,
        "subject": _place(relation.subject),
        "predicate": relation.predicate,
        "object": _place(relation.object),
        "score": relation.score,
        "attributes": {"pair": relation.pair.key, "run_id": run_id},
    }


def referral_to_row(referral: Referral, row_id: int, run_id: str) -> JsonObject:
    """Return one expression with the region that was chosen for it as a row of referred.json. candidates: keys of regions, in order."""
    return {
        "id": row_id,
        "image_id": referral.image_id,
        "expression": referral.expression.text,
        "expression_id": referral.expression.expression_id,
        **_place(referral.chosen),
        "score": referral.score,
        "candidates": [
            {"region_id": item.region_id, "region_key": item.key, "score": item.score} for item in referral.candidates
        ],
        "attributes": {
            "row": referral.expression.key,
            "run_id": run_id,
            **({} if referral.text is None else {"text": referral.text}),
        },
    }


def corners(box_xywh: BoxXywh) -> JsonValue:
    """Return a box as one polygon, as pycocotools' loadRes draws it."""
    x, y, width, height = box_xywh
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def label_to_result(label: Label, geometry: str, value: JsonValue) -> JsonObject:
    """Return one label as a row of a results file. geometry: "bbox" or "segmentation", never both.

    With both, loadRes takes the box's area for the mask's and so moves regions between size classes.
    """
    return {"image_id": label.image_id, "category_id": label.category_id, geometry: value, "score": label.score}


def abstention_to_line(abstention: Abstention, file_name: JsonValue) -> JsonObject:
    """Return one abstention as a line of abstained.jsonl: what the model said, and how near the nearest name was."""
    return {
        **_region_fields(abstention, file_name),
        "kind": "abstention",
        "reason": abstention.snap.reason,
        "text": abstention.text,
        "text_score": abstention.text_score,
        "nearest_name": abstention.snap.nearest_name,
        "similarity": abstention.snap.similarity,
        "margin": abstention.snap.margin,
        **_evidence_attributes(abstention.evidence),
        "bbox": list(abstention.box_xywh),
        "area": abstention.area_px,
    }


def failure_to_line(failure: Failure | QueryFailure, file_name: JsonValue) -> JsonObject:
    """Return one failure as a line of failures.jsonl, with its cause in words."""
    if isinstance(failure, QueryFailure):
        fields: JsonObject = {
            "query": query_to_json(failure.query),
            "image_id": json_safe(failure.image_id),
            "file_name": file_name,
        }
    else:
        fields = _region_fields(failure, file_name)
    return {**fields, "kind": failure.kind, "reason": failure.reason}


def info_object(manifest: Manifest) -> JsonObject:
    """Return `info` of labels.json: the input's, and under `rlabel` what made the labels. No clock, host or path."""
    return {
        **_readable_info(object_of(json_safe(manifest.header.get("info")))),
        "rlabel": {
            "version": manifest.rlabel_version,
            "run": manifest.fingerprint,
            "settings": manifest.settings,
            "input": {
                "sha256": manifest.corpus.sha256,
                "num_images": manifest.corpus.num_images,
                "num_regions": manifest.corpus.num_regions,
            },
        },
    }


def kept_header(manifest: Manifest) -> JsonObject:
    """Return the other top-level keys of the input that labels.json keeps, without null ones.

    hotcoco refuses a whole file whose `licenses` is there but no list of objects (an exporter's null, say).
    """
    ours = {"info", "images", "annotations", "categories"}
    header = {key: json_safe(value) for key, value in manifest.header.items() if key not in ours and value is not None}
    licenses = header.get("licenses", [])
    if not isinstance(licenses, list) or not all(isinstance(row, dict) for row in licenses):
        del header["licenses"]
    return header


def _readable_info(info: JsonObject) -> JsonObject:
    """Return the input's `info` with the types of cocodataset.org's format: year an integer, the other five texts.

    Exporters write "2024" and 1.0 there, and hotcoco refuses the whole file for it. Keys of others stay as they are.
    """
    readable = dict(info)
    for key in ("version", "description", "contributor", "url", "date_created"):
        if readable.get(key) is not None and not isinstance(readable[key], str):
            readable[key] = canonical_bytes(readable[key]).decode()
    year = readable.pop("year", None)
    if isinstance(year, int | float | str) and re.fullmatch(r"[0-9]{1,9}(\.0)?", str(year)):
        readable["year"] = int(float(year))
    return readable


def _annotation(outcome: Label | Caption, annotation_id: int, own_attributes: JsonObject) -> JsonObject:
    region = outcome.region
    segmentation = outcome.segmentation
    more: JsonObject = {}
    if not segmentation:
        # A region given as a box only. Without `segmentation` COCOeval (segm) and torchvision raise KeyError, and [] is
        # an error to pycocotools; the box's corners are what pycocotools' own loadRes puts there for a box.
        segmentation = corners(outcome.box_xywh)
        more["segmentation_from"] = "box"
    if region.is_crowd:
        more["was_crowd"] = True
    input_attributes = object_of(json_safe(region.extra.get("attributes")))
    return {
        **{key: json_safe(value) for key, value in region.extra.items() if key not in DROPPED_KEYS},
        "id": annotation_id,
        "image_id": outcome.image_id,
        "bbox": list(outcome.box_xywh),
        "area": outcome.area_px,
        "iscrowd": 0,
        "segmentation": segmentation,
        "attributes": {
            **{key: value for key, value in input_attributes.items() if key not in DROPPED_KEYS},
            **own_attributes,
            **more,
        },
    }


def _evidence_attributes(evidence: Evidence) -> JsonObject:
    """Return the evidence as scalars; of the candidates, the share of the first and which one comes second."""
    fields: JsonObject = {
        "num_tokens": evidence.num_tokens,
        "mean_logprob": evidence.mean_logprob,
        "min_logprob": evidence.min_logprob,
    }
    if evidence.agreement is not None:
        fields["agreement"] = evidence.agreement
    if evidence.candidates:
        fields["candidate_share"] = candidate_share(evidence)
    if len(evidence.candidates) > 1:
        fields["runner_up_id"] = evidence.candidates[1].category_id
    return fields


def _place(place: Place) -> JsonObject:
    return {
        "region_id": place.region_id,
        "region_key": place.key,
        "bbox": list(place.box_xywh),
        "area": place.area_px,
    }


def _region_fields(outcome: Abstention | Failure, file_name: JsonValue) -> JsonObject:
    return {
        "region_id": outcome.region.region_id,
        "region_key": outcome.region.key,
        "image_id": json_safe(outcome.image_id),
        "file_name": file_name,
    }
