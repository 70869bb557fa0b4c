"""Small patches of a picture, joined two by two until one is left; every region on the way is a candidate.

The patches are the basins of a watershed of the colour gradient; each join takes the two neighbours that differ least. After Uijlings et al.,
Selective Search (IJCV 2013), and Arbelaez et al., MCG (CVPR 2014). This leaves out their many colour spaces and learned ranking.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

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
class Node:
    """A region of a hierarchy. patches: bit n is set for patch n. outer, inner: mean gradient on its border and on the borders inside it.

    perimeter_px: of its border with other regions; edge_px: with the picture's own edge. born, dies: how different the parts were that it was
    joined from, and it and the neighbour that it was joined with. contrast: mean colour distance to its neighbours; spread: of its pixels
    from their mean, root mean square. box_xyxy: in the small picture.
    """

    patches: int
    size_px: int
    outer: float
    inner: float
    perimeter_px: float
    edge_px: int
    born: float
    dies: float
    contrast: float
    spread: float
    box_xyxy: tuple[int, int, int, int]


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
    _, flat = np.unique(labels_HW, return_inverse=True)
    return flat.reshape(labels_HW.shape).astype(np.int32)


def _sharpened(labels_HW: npt.NDArray[np.int32], colours_HW3: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Return the patches with each pixel on a border given to the neighbour whose colour is nearest: a blurred gradient moves borders by a pixel or two."""
    labels = labels_HW
    for _ in range(_SHARPENED_TIMES):
        flat = labels.ravel()
        sizes = np.maximum(np.bincount(flat), 1)
        means = np.stack([np.bincount(flat, colours_HW3[..., part].ravel()) / sizes for part in range(3)], axis=-1)
        padded = np.pad(labels, 1, mode="edge")
        around = (labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        on_border = np.any([one != labels for one in around[1:]], axis=0)
        choices = np.stack([one[on_border] for one in around])
        far = ((means[choices] - colours_HW3[on_border]) ** 2).sum(axis=-1)
        labels = labels.copy()
        labels[on_border] = choices[far.argmin(axis=0), np.arange(choices.shape[1])]
    return _numbered(labels)


def join(patches: Patches, by: str) -> list[Node]:
    """Return every region of one hierarchy. by: "edge", the mean gradient between two; "colour", Ward's: the growth of the variance; "both".

    Two equal differences are settled by the regions' numbers, so the same picture always gives the same.
    """
    count = len(patches.sizes_N)
    sizes = [int(size) for size in patches.sizes_N]
    means = [tuple(row) for row in patches.means_N3.tolist()]
    boxes, squares, edges = patches.boxes_N4.tolist(), patches.squares_N.tolist(), patches.edges_N.tolist()
    bits = [1 << n for n in range(count)]
    born, dies = [0.0] * count, [0.0] * count
    inner_length, inner_strength = [0] * count, [0.0] * count
    borders: list[dict[int, tuple[int, float]]] = [{} for _ in range(count)]
    for (one, other), length, strength in zip(
        patches.pairs_E2.tolist(), patches.lengths_E.tolist(), patches.strengths_E.tolist(), strict=True
    ):
        borders[one][other] = borders[other][one] = (length, strength)
    outer = [_sums(border) for border in borders]
    contrasts = [_contrast(means[n], borders[n], means) for n in range(count)]
    alive = [True] * count

    def difference(one: int, other: int) -> float:
        length, strength = borders[one][other]
        edge = strength / length
        if by == "edge":
            # Small regions go first, or specks outlive everything.
            return edge * min(sizes[one], sizes[other]) ** 0.25
        ward = (_squared(means[one], means[other]) * sizes[one] * sizes[other] / (sizes[one] + sizes[other])) ** 0.5
        return ward if by == "colour" else ward * (edge + 1.0)

    heap = [
        (difference(one, other), one, other) for one in range(count) for other in sorted(borders[one]) if one < other
    ]
    heapq.heapify(heap)
    height = 0.0
    while heap:
        apart, one, other = heapq.heappop(heap)
        if not (alive[one] and alive[other]):
            continue
        height = max(height, apart)
        new = len(sizes)
        total = sizes[one] + sizes[other]
        means.append(
            tuple((a * sizes[one] + b * sizes[other]) / total for a, b in zip(means[one], means[other], strict=True))
        )
        sizes.append(total)
        left, top, right, bottom = boxes[one]
        left2, top2, right2, bottom2 = boxes[other]
        boxes.append([min(left, left2), min(top, top2), max(right, right2), max(bottom, bottom2)])
        squares.append(squares[one] + squares[other])
        edges.append(edges[one] + edges[other])
        bits.append(bits[one] | bits[other])
        length, strength = borders[one].pop(other)
        borders[other].pop(one)
        inner_length.append(inner_length[one] + inner_length[other] + length)
        inner_strength.append(inner_strength[one] + inner_strength[other] + strength)
        born.append(height)
        dies[one] = dies[other] = height
        dies.append(0.0)
        alive[one] = alive[other] = False
        alive.append(True)
        border = dict(borders[one])
        for third, (more, stronger) in borders[other].items():
            before = border.get(third, (0, 0.0))
            border[third] = (before[0] + more, before[1] + stronger)
        borders.append(border)
        for third, shared in border.items():
            borders[third].pop(one, None)
            borders[third].pop(other, None)
            borders[third][new] = shared
        borders[one], borders[other] = {}, {}
        outer.append(_sums(border))
        contrasts.append(_contrast(means[new], border, means))
        for third in border:
            heapq.heappush(heap, (difference(new, third), third, new))
    return [
        Node(
            patches=bits[n],
            size_px=sizes[n],
            outer=outer[n][1] / max(outer[n][0], 1),
            inner=inner_strength[n] / max(inner_length[n], 1),
            perimeter_px=float(outer[n][0]),
            edge_px=edges[n],
            born=born[n],
            dies=dies[n],
            contrast=contrasts[n],
            spread=max(squares[n] / sizes[n] - sum(part * part for part in means[n]), 0.0) ** 0.5,
            box_xyxy=tuple(boxes[n]),
        )
        for n in range(len(sizes))
    ]


def _sums(border: dict[int, tuple[int, float]]) -> tuple[int, float]:
    length, strength = 0, 0.0
    for pixels, gradient in border.values():
        length += pixels
        strength += gradient
    return length, strength


def _contrast(mean: tuple[float, ...], border: dict[int, tuple[int, float]], means: list[tuple[float, ...]]) -> float:
    length, far = 0, 0.0
    for other, (pixels, _) in border.items():
        length += pixels
        far += pixels * _squared(mean, means[other]) ** 0.5
    return far / max(length, 1)


def _squared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the squared distance of two colours; written out, since it is most of the time."""
    first, second, third = one[0] - other[0], one[1] - other[1], one[2] - other[2]
    return first * first + second * second + third * third
