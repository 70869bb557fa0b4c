"""Which proposer a run has: found, checked and described before anything is loaded, and made where the work is done."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlabel.errors import InputError, UsageError
from rlabel.proposing.found import ALL, Keeping, Proposer
from rlabel.proposing.prompts import Prompt, read_prompts
from rlabel.proposing.settings import EMBEDDED, ProposeSettings
from rlabel.records import JsonObject

_SAM = {
    "sam": "SamModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_video": "Sam3TrackerModel",
}
_SAM_TEXT = "sam3"
_QUERIED = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "owlv2": "Owlv2ForObjectDetection",
    _SAM_TEXT: "Sam3Model",
}
_DETECTORS = {"rt_detr": "RTDetrForObjectDetection"}
# model_type of config.json -> class of transformers that proposes. SAM 2 and SAM 3 are published as the models of films that hold these; that
# of SAM 3 holds the one that looks for names as well.
CLASSES: Mapping[str, str] = {**_SAM, **_QUERIED, **_DETECTORS}
_MIN_SCORES = {"grounding-dino": 0.25, "owlv2": 0.1, "rt_detr": 0.3, _SAM_TEXT: 0.3}
# What the embedded proposer finds: raise it when that changes, so that a run is not gone on with by another one.
_EMBEDDED_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposerPlan:
    """A proposer before it is loaded, small enough to send. kind: `embedded` or a key of CLASSES. folder: of the model, absolute.

    names: to look for. prompts: by file name and by the picture's id as canonical JSON. deciding: what of it decides the regions.
    """

    kind: str
    name: str
    folder: str | None
    keeping: Keeping
    names: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[Prompt, ...]] | None = None
    deciding: JsonObject = field(default_factory=dict)


def plan_proposer(settings: ProposeSettings) -> ProposerPlan:
    """Return the settings' proposer.

    Raises InputError for no such model or one that proposes nothing, UsageError for settings that do not go with it.
    """
    if settings.proposer == EMBEDDED:
        return ProposerPlan(
            kind=EMBEDDED,
            name=EMBEDDED,
            folder=None,
            keeping=settings.keeping(0.0),
            deciding={"proposer": EMBEDDED, "proposer_version": _EMBEDDED_VERSION},
        )
    from rlabel.regiongpt.quantization import model_fingerprint
    from rlabel.vlm.loading import find_model, model_type_of

    # What a kind of model lacks is said before its weights are looked for or downloaded.
    small = find_model(settings.proposer, weights=False, flag="--proposer", check=check_proposes)
    kind = model_type_of(small)
    if kind == "sam3_video" and settings.vocabulary is not None:
        kind = _SAM_TEXT
    _check_goes_with(kind, settings)
    names, names_sha256 = _names(settings)
    prompts = None if settings.prompts is None else read_prompts(settings.prompts)
    folder = find_model(settings.proposer, flag="--proposer", check=check_proposes).absolute()
    deciding: JsonObject = {
        "proposer": kind,
        "proposer_sha256": model_fingerprint(folder),
        "names_sha256": names_sha256,
        "prompts_sha256": None if prompts is None else prompts.sha256,
    }
    return ProposerPlan(
        kind=kind,
        name=Path(settings.proposer).name or kind,
        folder=str(folder),
        keeping=settings.keeping(_MIN_SCORES.get(kind, 0.0)) if prompts is None else ALL,
        names=names,
        prompts=None if prompts is None else prompts.of_pictures,
        deciding=deciding,
    )


def looks_for_names(proposer: str) -> bool:
    """Return whether a proposer needs a vocabulary. Raises InputError for no such model or one that proposes nothing."""
    if proposer == EMBEDDED:
        return False
    from rlabel.vlm.loading import find_model, model_type_of

    return model_type_of(find_model(proposer, weights=False, flag="--proposer", check=check_proposes)) in _QUERIED


def check_proposes(config: dict[str, Any], given: str) -> None:
    """Raise InputError for a config.json of a model that proposes no regions, with what it is instead."""
    kind = config["model_type"]
    if kind in CLASSES:
        return
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    what = "proposes no regions"
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or kind == "regiongpt":
        what = "answers questions about pictures and finds nothing in them; it can be the --model of `rlabel label`"
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "is a language model that sees no pictures"
    raise InputError(
        f"{given}: model_type {kind!r} {what}. Give one of {', '.join(sorted(CLASSES))}, or leave --proposer out for the embedded one."
    )


def make_proposer(plan: ProposerPlan, settings: ProposeSettings) -> Proposer:
    """Return the proposer, its model loaded. Raises InputError when it cannot be loaded."""
    if plan.kind == EMBEDDED:
        from rlabel.proposing.embedded import EmbeddedProposer

        return EmbeddedProposer()
    from rlabel.proposing.loading import load

    model, device = load(plan, settings)
    if plan.kind in _SAM:
        from rlabel.proposing.sam import SamProposer

        return SamProposer(model, plan, settings, device)
    if plan.kind == _SAM_TEXT:
        from rlabel.proposing.sam_text import SamTextProposer

        return SamTextProposer(model, plan, settings, device)
    from rlabel.proposing.detectors import DetectorProposer

    return DetectorProposer(model, plan, settings, device)


def _check_goes_with(kind: str, settings: ProposeSettings) -> None:
    given = f"--proposer {settings.proposer}"
    if kind in _QUERIED and settings.vocabulary is None:
        raise UsageError(
            f"{given}: {kind} looks for names, got no --vocabulary. Give one, or a proposer that needs none (embedded, sam)."
        )
    if kind not in _QUERIED and settings.vocabulary is not None:
        raise UsageError(
            f"--vocabulary: {kind} looks for no names. Leave it out, or give grounding-dino, owlv2 or SAM 3."
        )
    if kind not in _SAM and settings.prompts is not None:
        raise UsageError(f"--prompts: {kind} takes no points. Leave it out, or give a SAM with --proposer.")


def _names(settings: ProposeSettings) -> tuple[tuple[str, ...], str | None]:
    if settings.vocabulary is None:
        return (), None
    from rlabel.vocabulary.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(settings.vocabulary)
    names = tuple(dict.fromkeys(category.name.replace("_", " ").strip().lower() for category in vocabulary.categories))
    return names, hashlib.sha256("\n".join(names).encode()).hexdigest()
