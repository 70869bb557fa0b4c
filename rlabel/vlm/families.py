"""What is known of each family of vision-language models: how it is told where a region lies, and what of a prompt its regions can share.

Knows nothing of torch: a job is planned, and refused, by what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlabel.config import LabelSettings
from rlabel.errors import UsageError
from rlabel.prompts.templates import REGION

RegionAs = Literal["box", "crop", "outline", "marks"]
# How a family writes a place: see `showing.box_text`.
Coordinates = Literal["pixels", "thousand", "unit", "loc_yx", "loc_xy", "patches"]
# What all regions of a picture can share: the prompt up to where they begin to differ; only what the vision tower makes of the picture; nothing.
Sharing = Literal["prompt", "picture", "nothing"]

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models that write places alike.

    model_types: of config.json. coordinates: None where nobody knows how the family writes a place. box: text of a box, with {x1} {y1} {x2} {y2}, or {box}
    for tokens. default: how a region is shown if the user does not say. ways: in which it may be shown.
    tasks: prompts that stand for a whole question, by task, for families that were trained on fixed prompts; empty for those that chat.
    whole_tasks: the same about a whole picture, that is, a crop. lead: what an answer to one of them begins with.
    square: pictures are padded to a square, as in training.
    batches: pictures of equal shape may go through the model together. source: where the convention is written down.
    """

    name: str
    model_types: tuple[str, ...]
    coordinates: Coordinates | None
    box: str = "[{x1}, {y1}, {x2}, {y2}]"
    default: RegionAs = "box"
    ways: tuple[RegionAs, ...] = ("box", "crop", "outline", "marks")
    sharing: Sharing = "prompt"
    tasks: dict[str, str] | None = None
    whole_tasks: dict[str, str] | None = None
    lead: str = ""
    square: bool = False
    batches: bool = True
    source: str = ""


_LIST = "[{x1}, {y1}, {x2}, {y2}]"
_NOT_WRITTEN_DOWN = "none is documented: [0, 1] to two decimals"
# Families that chat and share their prompt: name, model types, coordinates, box text, default, where the convention is written down.
_CHATS: tuple[tuple[str, tuple[str, ...], Coordinates | None, str, RegionAs, str], ...] = (
    ("qwen2_vl", ("qwen2_vl",), "thousand", "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>", "box",
     "Qwen2-VL, section 2.2: boxes normalised to [0, 1000) between box tokens"),
    ("qwen2_5_vl", ("qwen2_5_vl",), "pixels", _LIST, "box",
     "Qwen2.5-VL, section 2.2: absolute pixels of the picture as it was resized for the model"),
    ("qwen3_vl", ("qwen3_vl", "qwen3_vl_moe"), "thousand", _LIST, "box",
     "Qwen3-VL cookbook, 2D grounding: relative coordinates from 0 to 1000"),
    ("qwen3_5", ("qwen3_5", "qwen3_5_moe"), "thousand", _LIST, "crop", "as Qwen3-VL, whose processor it has; its makers' word was not found"),
    ("glm4v", ("glm4v", "glm4v_moe", "glm46v"), "thousand", "[[{x1},{y1},{x2},{y2}]]", "box",
     "GLM-V grounding guide of its makers (zai-org/glm-skills): x and y from 0 to 1000 of width and height"),
    ("internvl", ("internvl",), "thousand", "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>", "box",
     "InternVL documentation, grounding data: [0, 1000] between <box> and </box>"),
    ("llava_next", ("llava_next",), "unit", _LIST, "crop", "as LLaVA-1.5, of the picture itself"),
    ("llava_onevision", ("llava_onevision",), "unit", _LIST, "crop", "as LLaVA-1.5, of the picture itself"),
    ("idefics3", ("idefics3", "smolvlm"), "unit", _LIST, "crop", _NOT_WRITTEN_DOWN),
    ("gemma3", ("gemma3",), "unit", _LIST, "crop", _NOT_WRITTEN_DOWN),
    ("idefics2", ("idefics2",), None, _LIST, "crop", ""),
    ("aya_vision", ("aya_vision",), None, _LIST, "crop", ""),
    ("ovis2", ("ovis2",), None, _LIST, "crop", ""),
    ("mistral3", ("mistral3",), None, _LIST, "crop", ""),
    ("cohere2_vision", ("cohere2_vision",), None, _LIST, "crop", ""),
    ("lfm2_vl", ("lfm2_vl",), None, _LIST, "crop", ""),
)  # fmt: skip


def _that_chats(
    name: str, model_types: tuple[str, ...], coordinates: Coordinates | None, box: str, default: RegionAs, source: str
) -> Family:
    ways: tuple[RegionAs, ...] = ("crop", "outline", "marks")
    return Family(
        name=name,
        model_types=model_types,
        coordinates=coordinates,
        box=box,
        default=default,
        ways=ways if coordinates is None else ("box", *ways),
        source=source,
    )


FAMILIES: tuple[Family, ...] = (
    *(_that_chats(*row) for row in _CHATS),
    Family(
        name="llava",
        model_types=("llava", "vipllava"),
        coordinates="unit",
        default="crop",
        square=True,
        source="LLaVA-1.5 mix of instructions: [0, 1] to two decimals, of the picture padded to a square",
    ),
    Family(
        name="mllama",
        model_types=("mllama",),
        coordinates=None,
        default="crop",
        ways=("crop", "outline", "marks"),
        # Which tiles of the picture each token may look at is told anew at every step.
        sharing="nothing",
    ),
    Family(
        name="paligemma",
        model_types=("paligemma",),
        coordinates="loc_yx",
        box="{box}",
        # Its attention to the prompt is bidirectional: what it makes of the picture depends on the text behind it.
        sharing="picture",
        ways=("box", "crop"),
        tasks={"classify": "caption {box}", "caption": "caption {box}", "describe": "caption {box}"},
        whole_tasks={"classify": "caption en", "caption": "caption en", "describe": "describe en"},
        source="PaliGemma model card, `caption <ymin><xmin><ymax><xmax>`: 1024 bins, y before x",
    ),
    Family(
        name="florence2",
        model_types=("florence2",),
        coordinates="loc_xy",
        box="{box}",
        # Picture and prompt go through one bidirectional encoder.
        sharing="picture",
        ways=("box", "crop"),
        tasks={
            "classify": "<REGION_TO_CATEGORY>{box}",
            "caption": "<REGION_TO_DESCRIPTION>{box}",
            "describe": "<REGION_TO_DESCRIPTION>{box}",
        },
        whole_tasks={"classify": "<CAPTION>", "caption": "<CAPTION>", "describe": "<MORE_DETAILED_CAPTION>"},
        source="Florence-2, section 3: 1000 bins a side, x before y; transformers' Florence2PostProcessor.quantize",
    ),
    Family(
        name="kosmos2",
        model_types=("kosmos-2",),
        coordinates="patches",
        box="{box}",
        sharing="picture",
        ways=("box", "crop"),
        tasks={
            "classify": "<grounding><phrase> It</phrase>{box} is",
            "caption": "<grounding><phrase> It</phrase>{box} is",
            "describe": "<grounding><phrase> It</phrase>{box} is",
        },
        whole_tasks={
            "classify": "<grounding> An image of",
            "caption": "<grounding> An image of",
            "describe": "<grounding> Describe this image in detail:",
        },
        lead=" ",
        source="Kosmos-2, section 2.1: two of 32 x 32 patches, the upper left and the lower right",
    ),
)
# Nothing is known: each picture alone, no box, no padding, nothing shared.
_NOTHING_KNOWN = Family(
    name=UNKNOWN,
    model_types=(),
    coordinates=None,
    default="crop",
    ways=("crop", "outline", "marks"),
    sharing="nothing",
    batches=False,
)
_BY_NAME = {family.name: family for family in FAMILIES}
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}

# What a model that chats is asked; {region} is how the region is shown.
_QUESTIONS = {
    "classify": f"Name the object in {REGION} in one to three words. Answer with its name only.",
    "caption": f"Describe {REGION} in one short phrase.",
    "describe": f"Describe {REGION} in detail.",
}
# What stands for `<region>` in the question. {box}: text of the box, {number}: of the mark.
_PHRASES: dict[RegionAs, str] = {
    "box": "the region {box}",
    "crop": "the middle of this picture",
    "outline": "the red outline",
    "marks": "the outline numbered {number}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainModel:
    """How a run shows regions to a plain model; all of it is in the manifest.

    family: name. prompt: of a region, holding {box} or {number} where the way asks for it. chats: the prompt is a user's turn, else it is the whole text.
    picture_px: longest side of a whole picture. crop_px: side of a crop; crop_context: its margin, share of the box's longer side.
    """

    family: str
    region_as: RegionAs
    prompt: str
    chats: bool
    picture_px: int
    crop_px: int
    crop_context: float


def family_of(model_type: str | None, override: str | None = None) -> Family:
    """Return the family of a model by config.json's model_type, or the one that the user names; of an unknown type, what is safe for any.

    Raises UsageError for a name that no family has.
    """
    if override is not None:
        if override not in _BY_NAME:
            raise UsageError(
                f"--family {override}: expected one of {', '.join(_BY_NAME)}. Leave it out to go by config.json."
            )
        return _BY_NAME[override]
    return _BY_TYPE.get(model_type or "", _NOTHING_KNOWN)


def named(name: str) -> Family:
    """Return the family that a `PlainModel` names."""
    return _BY_NAME.get(name, _NOTHING_KNOWN)


def plan_plain(settings: LabelSettings, model_type: str) -> PlainModel:
    """Return how regions are shown to a model of some type under the settings.

    Raises UsageError for what such models cannot do, with what to do instead.
    """
    refuse_what_is_regiongpts(settings, model_type)
    family = family_of(model_type, settings.family)
    way = family.default if settings.region_as == "auto" else settings.region_as
    if way not in family.ways:
        why = (
            f"nobody has told rlabel how models of type {model_type!r} write boxes"
            if family.coordinates is None
            else f"{family.name} models were trained on fixed prompts, with {' or '.join(family.ways)}"
        )
        also = " or name the family whose coordinates it follows with --family" if family.coordinates is None else ""
        raise UsageError(f"--region-as {way}: {why}. Use --region-as crop{',' if also else ''}{also}.")
    fixed = family.tasks if way == "box" else family.whole_tasks if way == "crop" else None
    if fixed is not None and settings.question is not None:
        raise UsageError(
            f"--question: {family.name} models answer their own task prompts only (here {fixed[settings.task]!r}), got {settings.question!r}. Leave it out."
        )
    question = settings.question or _QUESTIONS[settings.task]
    prompt = question.replace(REGION, _PHRASES[way]) if fixed is None else fixed[settings.task]
    return PlainModel(
        family=family.name,
        region_as=way,
        prompt=prompt,
        chats=fixed is None,
        picture_px=settings.picture_px,
        crop_px=settings.crop_px,
        crop_context=settings.crop_context,
    )


def prompt_text(plain: PlainModel, box: str = "", number: int = 0) -> str:
    """Return the prompt of one region. box: its text in the family's coordinates."""
    return plain.prompt.replace("{box}", box).replace("{number}", str(number))


def refuse_what_is_regiongpts(settings: LabelSettings, model_type: str) -> None:
    """Raise UsageError for settings that only a RegionGPT can follow."""
    plain = f"a plain model ({model_type})"
    next_step = "Leave it out, or give a RegionGPT (`rlabel train` makes one)."
    if settings.task in ("relate", "refer"):
        raise UsageError(f"--task {settings.task}: {plain} is asked about one region at a time. {next_step}")
    default = LabelSettings.model_fields
    for name, why in (
        ("mode", "is asked in a conversation of its own for each region"),
        ("views", "is shown each region as --region-as says"),
        ("num_questions", "is asked one question"),
        ("vocabulary_name", "was trained on no vocabulary that rlabel knows"),
        ("compile", "runs as transformers has it"),
    ):
        if getattr(settings, name) != default[name].default:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {getattr(settings, name)}: {plain} {why}. {next_step}")
    if settings.rank_by == "prior":
        raise UsageError(
            f"--rank-by prior: {plain} is shown no blank region to compare with. Use --rank-by total or per_token."
        )
    if settings.prefix_sharing == "packed":
        raise UsageError(
            f"--prefix-sharing packed: {plain} keeps a copy of the prompt for each region. Use auto, expanded or none."
        )


def refuse_what_is_plain(settings: LabelSettings) -> None:
    """Raise UsageError for settings that a RegionGPT has no use for: it sees masks."""
    if settings.trust_remote_code:
        raise UsageError("--trust-remote-code: a RegionGPT runs rlabel's own code. Leave it out.")
    for name in ("region_as", "family", "picture_px", "crop_px", "crop_context"):
        if getattr(settings, name) != LabelSettings.model_fields[name].default:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(settings, name)}: a RegionGPT is given the masks themselves. Leave it out."
            )
