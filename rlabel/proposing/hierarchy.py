"""Small patches of a picture, joined two by two until one is left; every region on the way is a candidate.

The patches are the basins of a watershed of the colour gradient; each join takes the two neighbours that differ least. After Uijlings et al.,
Selective Search (IJCV 2013), and Arbelaez et al., MCG (CVPR 2014). This leaves out their many colour spaces and learned ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from heapq import heapify, heappop, heappush
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import ndimage

# N patches, M nodes (patches first, then joined ones in the order they are made), H W pixels of the small picture.
_SHARPENED_TIMES = 2
_CHROMA_WEIGHT = 1.5  # of two colour channels against brightness


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patches:
    """labels_HW: int32, 0 to N - 1. means_N3: colour. sizes_N: pixels. pairs_E2: neighbours, the lower first.

    lengths_E, strengths_E: of the border between two: pixels, and the sum of the gradient along it. boxes_N4: int, left, top, right, bottom,
    the last two exclusive. squares_N: sum of the squared colours. edges_N: pixels on the picture's own edge.
    """

    labels_HW: npt.NDArray[np.int32]
    means_N3: npt.NDArray[np.float64]
    sizes_N: npt.NDArray[np.int64]
    pairs_E2: npt.NDArray[np.int64]
    lengths_E: npt.NDArray[np.int64]
    strengths_E: npt.NDArray[np.float64]
    boxes_N4: npt.NDArray[np.int64]
    squares_N: npt.NDArray[np.float64]
    edges_N: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nodes:
    """The regions of hierarchies. patches: of each, one int, whose bit n is set for patch n; the rest float64 or int64 (M,), boxes_M4 (M, 4).

    outer_M, inner_M: mean gradient on a region's border and on the borders inside it. perimeters_M: pixels of its border with other regions; edges_M:
    on the picture's own edge. born_M, dies_M: how different the parts were that it was joined from, and it and the neighbour that it was joined
    with. contrasts_M: mean colour distance to its neighbours; spreads_M: of its pixels from their mean, root mean square. boxes_M4: left, top, right,
    bottom in the small picture, the last two exclusive.
    """

    patches: list[int]
    sizes_M: npt.NDArray[np.int64]
    outer_M: npt.NDArray[np.float64]
    inner_M: npt.NDArray[np.float64]
    perimeters_M: npt.NDArray[np.int64]
    edges_M: npt.NDArray[np.int64]
    born_M: npt.NDArray[np.float64]
    dies_M: npt.NDArray[np.float64]
    contrasts_M: npt.NDArray[np.float64]
    spreads_M: npt.NDArray[np.float64]
    boxes_M4: npt.NDArray[np.int64]


def chosen(hierarchies: Sequence[Nodes], places: Sequence[int]) -> Nodes:
    """Return some regions of several hierarchies as one. places: in all of them, one after the other."""
    patches = [one for nodes in hierarchies for one in nodes.patches]
    arrays = {
        field.name: np.concatenate([getattr(nodes, field.name) for nodes in hierarchies])[places]
        for field in fields(Nodes)
        if field.name != "patches"
    }
    return Nodes(patches=[patches[place] for place in places], **arrays)


def colours(pixels_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return brightness and two colour differences of ITU-R BT.601, each in [0, 255] but for the weight: float64 (H, W, 3)."""
    rgb = pixels_HWC.astype(np.float64)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([luma, _CHROMA_WEIGHT * 0.564 * (blue - luma), _CHROMA_WEIGHT * 0.713 * (red - luma)], axis=-1)


def find_patches(colours_HW3: npt.NDArray[np.float64], sigma_px: float, spacing_px: int) -> Patches:
    """Return the patches of a small picture. spacing_px: the lows of the gradient that begin one are at least so far apart."""
    smooth = ndimage.gaussian_filter(colours_HW3, (sigma_px, sigma_px, 0))
    across = ndimage.sobel(smooth, axis=1) / 8
    down = ndimage.sobel(smooth, axis=0) / 8
    gradient = np.sqrt((across**2 + down**2).sum(axis=-1))
    levels = np.minimum(gradient * 8, 65535).astype(np.uint16)
    # A plateau of equal lows is one marker; noise this small does not make another.
    lows = ndimage.minimum_filter(levels, size=spacing_px) == levels
    markers, count = ndimage.label(lows, structure=np.ones((3, 3)))
    if count < 1:
        markers = np.ones(levels.shape, dtype=np.int32)
    labels = ndimage.watershed_ift(levels, markers.astype(np.int32)).astype(np.int32)
    labels = _sharpened(_numbered(labels), colours_HW3)
    sizes = np.bincount(labels.ravel())
    means = np.stack(
        [np.bincount(labels.ravel(), colours_HW3[..., part].ravel()) / sizes for part in range(3)], axis=-1
    )
    firsts, seconds, edges = [], [], []
    for one, other, gradients in (
        (labels[:, :-1], labels[:, 1:], np.maximum(gradient[:, :-1], gradient[:, 1:])),
        (labels[:-1], labels[1:], np.maximum(gradient[:-1], gradient[1:])),
    ):
        differ = one != other
        firsts.append(np.minimum(one, other)[differ])
        seconds.append(np.maximum(one, other)[differ])
        edges.append(gradients[differ])
    codes = np.concatenate(firsts).astype(np.int64) * len(sizes) + np.concatenate(seconds)
    found, inverse, lengths = np.unique(codes, return_inverse=True, return_counts=True)
    boxes = [(part[1].start, part[0].start, part[1].stop, part[0].stop) for part in ndimage.find_objects(labels + 1)]
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return Patches(
        boxes_N4=np.asarray(boxes, dtype=np.int64),
        squares_N=np.bincount(labels.ravel(), (colours_HW3**2).sum(axis=-1).ravel()).astype(np.float64),
        edges_N=np.bincount(rim, minlength=len(sizes)),
        labels_HW=labels,
        means_N3=means,
        sizes_N=sizes,
        pairs_E2=np.stack([found // len(sizes), found % len(sizes)], axis=-1),
        lengths_E=lengths,
        strengths_E=np.bincount(inverse, np.concatenate(edges), minlength=len(found)).astype(np.float64),
    )


def _numbered(labels_HW: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the labels with numbers from 0 on, none of them left out."""
    is_there = np.bincount(labels_HW.ravel()) > 0
    numbers: npt.NDArray[np.int32] = (np.cumsum(is_there) - 1).astype(np.int32)
    return numbers[labels_HW]


def _sharpened(labels_HW: npt.NDArray[np.int32], colours_HW3: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Return the patches with each pixel on a border given to the neighbour whose colour is nearest: a blurred gradient moves borders by a pixel or two."""
    labels = labels_HW
    height, width = labels.shape
    planes_3P = [np.ascontiguousarray(colours_HW3[..., part]).ravel() for part in range(3)]
    for _ in range(_SHARPENED_TIMES):
        flat = labels.ravel()
        sizes = np.maximum(np.bincount(flat), 1)
        means_3N = [np.bincount(flat, plane) / sizes for plane in planes_3P]
        beside, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
        on_border = np.zeros(labels.shape, dtype=np.bool_)
        for part, differs in (
            (on_border[:, 1:], beside),
            (on_border[:, :-1], beside),
            (on_border[1:], below),
            (on_border[:-1], below),
        ):
            part |= differs
        places_K = np.flatnonzero(on_border)
        own_3K = [plane[places_K] for plane in planes_3P]
        rows_K, columns_K = places_K // width, places_K % width
        best_K = flat[places_K]
        least_K = _squared(means_3N, best_K, own_3K)
        # Of equally near ones the first stays: itself, then above, below, left and right.
        for row_K, column_K in (
            (np.maximum(rows_K - 1, 0), columns_K),
            (np.minimum(rows_K + 1, height - 1), columns_K),
            (rows_K, np.maximum(columns_K - 1, 0)),
            (rows_K, np.minimum(columns_K + 1, width - 1)),
        ):
            other_K = flat[row_K * width + column_K]
            far_K = _squared(means_3N, other_K, own_3K)
            is_nearer = far_K < least_K
            best_K = np.where(is_nearer, other_K, best_K)
            least_K = np.minimum(far_K, least_K)
        flat = flat.copy()
        flat[places_K] = best_K
        labels = flat.reshape(height, width)
    return _numbered(labels)


def _squared(
    means_3N: list[npt.NDArray[np.float64]], labels_K: npt.NDArray[np.int32], own_3K: list[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Return the squared distance of each pixel's colour to the mean of a patch."""
    parts = [mean_N[labels_K] - own_K for mean_N, own_K in zip(means_3N, own_3K, strict=True)]
    squared_K: npt.NDArray[np.float64] = parts[0] * parts[0] + parts[1] * parts[1] + parts[2] * parts[2]
    return squared_K


def join(patches: Patches, by: str) -> Nodes:
    """Return every region of one hierarchy. by: "edge", the mean gradient between two; "colour", Ward's: the growth of the variance; "both".

    Two equal differences are settled by the regions' numbers, so the same picture always gives the same. Written flat: this is most of a
    proposer's time, and a call for each pair of neighbours would be half of that.
    """
    count = len(patches.sizes_N)
    by_edge, by_both = by == "edge", by == "both"
    sizes: list[int] = patches.sizes_N.tolist()
    reds, greens, blues = (part.tolist() for part in patches.means_N3.T)
    bits = [1 << n for n in range(count)]
    # Small regions go first, or specks outlive everything.
    roots = [sqrt(sqrt(size)) for size in sizes]
    parts: list[tuple[int, int]] = []
    born, dies = [0.0] * count, [0.0] * count
    inner_length, inner_strength = [0] * count, [0.0] * count
    borders: list[dict[int, tuple[int, float]]] = [{} for _ in range(count)]
    heap: list[tuple[float, int, int]] = []
    for (one, other), length, strength in zip(
        patches.pairs_E2.tolist(), patches.lengths_E.tolist(), patches.strengths_E.tolist(), strict=True
    ):
        borders[one][other] = borders[other][one] = (length, strength)
        difference = strength / length
        if by_edge:
            difference *= min(roots[one], roots[other])
        else:
            red, green, blue = reds[one] - reds[other], greens[one] - greens[other], blues[one] - blues[other]
            squared = red * red + green * green + blue * blue
            ward = sqrt(squared * sizes[one] * sizes[other] / (sizes[one] + sizes[other]))
            difference = ward * (difference + 1.0) if by_both else ward
        heap.append((difference, one, other))
    lengths, strengths, contrasts = [], [], []
    for n, border in enumerate(borders):
        all_length, all_strength, far = 0, 0.0, 0.0
        for other, (length, strength) in border.items():
            red, green, blue = reds[n] - reds[other], greens[n] - greens[other], blues[n] - blues[other]
            far += length * sqrt(red * red + green * green + blue * blue)
            all_length += length
            all_strength += strength
        lengths.append(all_length)
        strengths.append(all_strength)
        contrasts.append(far / max(all_length, 1))
    alive = bytearray(b"\1" * count)
    heapify(heap)
    height = 0.0
    while heap:
        apart, one, other = heappop(heap)
        if not (alive[one] and alive[other]):
            continue
        height = max(height, apart)
        new = len(sizes)
        first, second = sizes[one], sizes[other]
        size = first + second
        new_red = (reds[one] * first + reds[other] * second) / size
        new_green = (greens[one] * first + greens[other] * second) / size
        new_blue = (blues[one] * first + blues[other] * second) / size
        root = sqrt(sqrt(size))
        alive[one] = alive[other] = 0
        border, more = borders[one], borders[other]
        borders[one] = borders[other] = {}
        length, strength = border.pop(other)
        del more[one]
        inner_length.append(inner_length[one] + inner_length[other] + length)
        inner_strength.append(inner_strength[one] + inner_strength[other] + strength)
        for third, shared in more.items():
            before = border.get(third)
            border[third] = shared if before is None else (before[0] + shared[0], before[1] + shared[1])
        all_length, all_strength, far = 0, 0.0, 0.0
        for third, shared in border.items():
            theirs = borders[third]
            theirs.pop(one, None)
            theirs.pop(other, None)
            theirs[new] = shared
            length, strength = shared
            red, green, blue = new_red - reds[third], new_green - greens[third], new_blue - blues[third]
            squared = red * red + green * green + blue * blue
            far += length * sqrt(squared)
            all_length += length
            all_strength += strength
            difference = strength / length
            if by_edge:
                smaller = roots[third]
                difference *= smaller if smaller < root else root
            else:
                ward = sqrt(squared * size * sizes[third] / (size + sizes[third]))
                difference = ward * (difference + 1.0) if by_both else ward
            heappush(heap, (difference, third, new))
        parts.append((one, other))
        sizes.append(size)
        reds.append(new_red)
        greens.append(new_green)
        blues.append(new_blue)
        roots.append(root)
        bits.append(bits[one] | bits[other])
        born.append(height)
        dies[one] = dies[other] = height
        dies.append(0.0)
        alive.append(1)
        borders.append(border)
        lengths.append(all_length)
        strengths.append(all_strength)
        contrasts.append(far / max(all_length, 1))
    sizes_M = np.asarray(sizes, dtype=np.int64)
    boxes_M4, squares_M, edges_M = _of_parts(patches, parts)
    means_squared_M = np.asarray(reds) ** 2 + np.asarray(greens) ** 2 + np.asarray(blues) ** 2
    perimeters_M = np.asarray(lengths, dtype=np.int64)
    return Nodes(
        patches=bits,
        sizes_M=sizes_M,
        outer_M=np.asarray(strengths) / np.maximum(perimeters_M, 1),
        inner_M=np.asarray(inner_strength) / np.maximum(np.asarray(inner_length), 1),
        perimeters_M=perimeters_M,
        edges_M=edges_M,
        born_M=np.asarray(born),
        dies_M=np.asarray(dies),
        contrasts_M=np.asarray(contrasts),
        spreads_M=np.sqrt(np.maximum(squares_M / sizes_M - means_squared_M, 0.0)),
        boxes_M4=boxes_M4,
    )


def _of_parts(
    patches: Patches, parts: list[tuple[int, int]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return what follows from the two parts of each joined region alone: boxes, sums of squared colours, pixels on the picture's edge."""
    boxes, squares, edges = patches.boxes_N4.tolist(), patches.squares_N.tolist(), patches.edges_N.tolist()
    for one, other in parts:
        left, top, right, bottom = boxes[one]
        left2, top2, right2, bottom2 = boxes[other]
        boxes.append(
            (
                left if left < left2 else left2,
                top if top < top2 else top2,
                right if right > right2 else right2,
                bottom if bottom > bottom2 else bottom2,
            )
        )
        squares.append(squares[one] + squares[other])
        edges.append(edges[one] + edges[other])
    return np.asarray(boxes, dtype=np.int64), np.asarray(squares), np.asarray(edges, dtype=np.int64)
