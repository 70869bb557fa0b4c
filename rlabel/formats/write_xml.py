"""Pascal VOC and CVAT for images 1.1. What the numbers mean is told in read_voc.py and read_cvat.py."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rlabel.corpus.masks import RegionMask
from rlabel.formats.outlines import Loop
from rlabel.formats.shapes import whole_numbers
from rlabel.formats.shown import ShownLabel, ShownPicture
from rlabel.formats.writing import Export, Files, buffered, named_pictures, short, sized_pictures, xml_text

_MOST_IN_PALETTE = 254


def write_voc(export: Export) -> list[str]:
    """Write Annotations/STEM.xml, ImageSets/Main/default.txt, labels.txt and labelmap.txt, and where there are masks
    SegmentationObject/STEM.png and SegmentationClass/STEM.png.

    Boxes are whole pixels counted from 1, both ends inside. In a PNG each pixel belongs to one object, the smallest there.
    """
    stems: list[str] = []
    with Files(export.out) as out:
        for stem, picture in named_pictures(export):
            drawn = [
                (label, mask) for label in picture.labels if (mask := export.shapes.mask(picture, label)) is not None
            ]
            out.put(f"Annotations/{stem}.xml", _voc_xml(export, picture, [label for label, _ in drawn]).encode())
            if export.with_masks:
                objects, classes = _voc_pngs(export, picture, drawn)
                out.put(f"SegmentationObject/{stem}.png", objects)
                out.put(f"SegmentationClass/{stem}.png", classes)
            out.copy_picture(export, picture, "JPEGImages")
            stems.append(stem)
    export.out.put("ImageSets/Main/default.txt", "".join(f"{stem}\n" for stem in stems).encode())
    names = [" ".join(category.name.split()) for category in export.labels.categories.values()]
    export.out.put("labels.txt", "".join(f"{name}\n" for name in names).encode())
    # CVAT and datumaro take VOC's own twenty classes where no such file names others.
    colours = (",".join(map(str, colour)) for colour in _colours(np.arange(1, len(names) + 1)).tolist())
    rows = "".join(f"{name.replace(':', ' ')}:{colour}::\n" for name, colour in zip(names, colours, strict=True))
    export.out.put("labelmap.txt", f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{rows}".encode())
    files = ["Annotations/", "ImageSets/Main/default.txt", "labels.txt", "labelmap.txt"]
    return (
        files
        + ["SegmentationObject/", "SegmentationClass/"] * export.with_masks
        + ["JPEGImages/"] * (export.images is not None)
    )


def _voc_xml(export: Export, picture: ShownPicture, labels: list[ShownLabel]) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{xml_text(picture.file_name or '')}</filename>",
        f"  <size><width>{picture.width_px}</width><height>{picture.height_px}</height><depth>3</depth></size>",
        f"  <segmented>{int(export.with_masks)}</segmented>",
    ]
    for label in labels:
        x, y, width, height = label.box_xywh
        sides = (
            max(round(x), 0) + 1,
            max(round(y), 0) + 1,
            min(round(x + width), picture.width_px or 0),
            min(round(y + height), picture.height_px or 0),
        )
        if any(not side.is_integer() for side in label.box_xywh):
            export.notes.say("boxes rounded to whole pixels")
        if label.score is not None:
            export.notes.say("scores in a tag <score> of their own, which VOC's readers pass over")
        lines += [
            "  <object>",
            f"    <name>{xml_text(label.category.name)}</name>",
            # VOC has no crowds; what is hard to judge is not counted in its evaluation either.
            f"    <pose>Unspecified</pose><truncated>0</truncated><difficult>{int(label.is_crowd)}</difficult>",
            f"    <bndbox><xmin>{sides[0]}</xmin><ymin>{sides[1]}</ymin><xmax>{max(sides[2], sides[0])}</xmax><ymax>{max(sides[3], sides[1])}</ymax></bndbox>",
            *([] if label.score is None else [f"    <score>{label.score:g}</score>"]),
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _voc_pngs(export: Export, picture: ShownPicture, drawn: list[tuple[ShownLabel, RegionMask]]) -> tuple[bytes, bytes]:
    """Return the PNGs of the objects, by their place in the XML, and of their classes, by their place in labelmap.txt."""
    assert picture.width_px is not None and picture.height_px is not None
    num = min(len(drawn), _MOST_IN_PALETTE)
    export.notes.say(
        f"masks left out, since a PNG of VOC holds {_MOST_IN_PALETTE} objects", picture.file_name, len(drawn) - num
    )
    ids_HW = np.zeros((picture.height_px, picture.width_px), dtype=np.uint8)
    for index in sorted(range(num), key=lambda index: -drawn[index][1].area_px):
        mask = drawn[index][1]
        height, width = mask.crop_shape
        window = ids_HW[mask.top_px : mask.top_px + height, mask.left_px : mask.left_px + width]
        window[mask.crop_HW] = index + 1
    seen = np.bincount(ids_HW.ravel(), minlength=num + 1)
    num_covered = sum(int(seen[index + 1]) < drawn[index][1].area_px for index in range(num))
    export.notes.say("masks that lose pixels to smaller ones above them", picture.file_name, num_covered)
    classes = np.array([0, *(label.category.index + 1 for label, _ in drawn[:num])])
    return _png(ids_HW.astype(np.int64)), _png(classes[ids_HW])


def _png(ids_HW: npt.NDArray[np.int64]) -> bytes:
    """Return a PNG whose colours are VOC's of these ids: with a palette where they fit one, else RGB."""
    from PIL import Image

    if int(ids_HW.max()) < 256:
        image = Image.fromarray(ids_HW.astype(np.uint8))
        image.putpalette(_colours(np.arange(256)).ravel().tolist())
    else:
        image = Image.fromarray(_colours(ids_HW))
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def _colours(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return VOC's colours: bit i of an id goes to bit 7 - i / 3 of red, green or blue in turn (VOCdevkit, VOClabelcolormap.m).

    ids: int64 (...), below 2^24. Returns uint8 (..., 3), another colour for every id.
    """
    colours = np.zeros((*ids.shape, 3), dtype=np.uint8)
    for bit in range(24):
        colours[..., bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


def write_cvat(export: Export) -> list[str]:
    """Write annotations.xml: boxes, polygons, and masks where a polygon would lose holes or pieces. Scores and texts are attributes."""
    export.out.put_stream("annotations.xml", buffered(_cvat_parts(export)))
    if export.images is not None:
        export.notes.say("pictures not copied: CVAT takes them into a task of its own", None, export.labels.num_images)
    return ["annotations.xml"]


def _cvat_parts(export: Export) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><task><labels>\n'
    attribute = "<attribute><name>{}</name><mutable>False</mutable><input_type>text</input_type><default_value></default_value><values></values></attribute>"
    declared = "".join(attribute.format(name) for name in ("score", "text"))
    for category in export.labels.categories.values():
        yield f"    <label><name>{xml_text(category.name)}</name><attributes>{declared}</attributes></label>\n"
    yield "  </labels></task></meta>\n"
    for picture in sized_pictures(export):
        name = xml_text(picture.file_name or str(picture.image_id))
        yield f'  <image id="{picture.index}" name="{name}" width="{picture.width_px}" height="{picture.height_px}">\n'
        for label in picture.labels:
            mask = export.shapes.mask(picture, label)
            if mask is not None:
                yield _cvat_shape(export, label, mask)
        yield "  </image>\n"
    yield "</annotations>\n"


def _cvat_shape(export: Export, label: ShownLabel, mask: RegionMask) -> str:
    if label.is_crowd:
        export.notes.say("crowds written as single objects")
    common = f'label="{xml_text(label.category.name)}" source="auto" occluded="0" z_order="0"'
    if label.segmentation is None or export.boxes_only:
        x, y, width, height = label.box_xywh
        kind, shape = "box", f'xtl="{short(x)}" ytl="{short(y)}" xbr="{short(x + width)}" ybr="{short(y + height)}"'
    elif (loop := export.shapes.plain_polygon(label, mask)) is not None:
        kind, shape = "polygon", f'points="{_points(loop)}"'
    else:
        crop_hw = mask.crop_HW
        changes = np.flatnonzero(np.diff(crop_hw.ravel(), prepend=False, append=not crop_hw[-1, -1]))
        counts = np.diff(changes, prepend=0)
        height_px, width_px = crop_hw.shape
        kind = "mask"
        shape = f'rle="{", ".join(map(str, counts.tolist()))}" left="{mask.left_px}" top="{mask.top_px}" width="{width_px}" height="{height_px}"'
    text = label.attributes.get("text")
    values = {
        "score": None if label.score is None else f"{label.score:g}",
        "text": text if isinstance(text, str) else None,
    }
    inner = "".join(
        f'<attribute name="{name}">{xml_text(value)}</attribute>' for name, value in values.items() if value is not None
    )
    return f"    <{kind} {common} {shape}>{inner}</{kind}>\n"


def _points(loop: Loop) -> str:
    whole = whole_numbers(loop)
    if whole is None:
        return ";".join(f"{short(x)},{short(y)}" for x, y in loop.tolist())
    return ";".join(map("%d,%d".__mod__, zip(whole[::2], whole[1::2], strict=True)))
