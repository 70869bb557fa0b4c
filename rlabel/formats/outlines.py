"""A mask as polygons along the edges of its pixels, so that drawing them gives the mask again.

Why not a contour library: theirs run through the centres of border pixels (OpenCV's) or between them (marching squares), which
costs a small object a fifth of its area. Along the edges nothing is lost, and what `simplified` then loses is measured.

Legend: K corners, where the outline turns; h, w rows and columns of a mask cut to what it fills.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlabel.corpus.rle import MaskHW

Points = npt.NDArray[np.float64]
Loop = Points  # (n, 2), x then y, closed without repeating its first point


def outlines(mask_hw: MaskHW) -> list[tuple[Loop, list[Loop]]]:
    """Return each piece of a mask as its outer loop and the loops of its holes, in pixels of the mask.

    mask_hw: bool (h, w). Pieces touch at corners at most (4-connected), in the order of their first pixel by rows.
    """
    pieces: list[tuple[Loop, list[Loop]]] = []
    holes: list[Loop] = []
    for loop, is_hole in _loops(mask_hw):
        if is_hole:
            holes.append(loop)
        else:
            pieces.append((loop, []))
    if len(pieces) == 1:
        return [(pieces[0][0], holes)]
    boxes_P4 = np.array([(*outer.min(axis=0), *outer.max(axis=0)) for outer, _ in pieces])
    for hole in holes:
        _piece_around(pieces, boxes_P4, hole)[1].append(hole)
    return pieces


def _loops(mask_hw: MaskHW) -> list[tuple[Loop, bool]]:
    """Return every closed line between inside and outside, and whether it goes round a hole.

    A corner of the outline is a point whose four pixels hold an odd number of True, or two across from each other; the
    latter counts twice. Along a row, corners pair up to edges, along a column too, and following the two kinds in turn
    walks a loop.
    """
    padded = np.pad(mask_hw, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    is_saddle = (a == d) & (b == c) & (a != b)
    ys, xs = np.nonzero((a ^ b ^ c ^ d) | is_saddle)
    twice = np.where(is_saddle[ys, xs], 2, 1)
    y_K, x_K = np.repeat(ys, twice), np.repeat(xs, twice)
    second_K = np.zeros(y_K.size, dtype=np.int64)
    second_K[np.cumsum(twice)[twice == 2] - 1] = 1
    # The first copy of a saddle ends the edge from the left. It turns up where the pixel up left is inside, else down.
    falls_K = second_K ^ ((~a[y_K, x_K]) & is_saddle[y_K, x_K])
    along_row = _partners(np.lexsort((second_K, x_K, y_K)))
    along_column = _partners(np.lexsort((falls_K, y_K, x_K)))
    below_right = d[y_K, x_K].tolist()
    visited = bytearray(y_K.size)
    loops: list[tuple[Loop, bool]] = []
    for start in range(y_K.size):
        if visited[start]:
            continue
        order: list[int] = []
        at = start
        while not visited[at]:
            other = along_row[at]
            visited[at] = visited[other] = 1
            order += (at, other)
            at = along_column[other]
        loops.append((np.stack((x_K[order], y_K[order]), axis=1).astype(np.float64), not below_right[start]))
    return loops


def _partners(order: npt.NDArray[np.int64]) -> list[int]:
    """Return for each corner the one at the other end of its edge; order: corners as they follow each other on lines."""
    partners = np.empty(order.size, dtype=np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    found: list[int] = partners.tolist()
    return found


def _piece_around(pieces: list[tuple[Loop, list[Loop]]], boxes_P4: Points, hole: Loop) -> tuple[Loop, list[Loop]]:
    """Return the innermost piece that a hole lies in: of those around the pixel left of its first corner, the smallest.

    boxes_P4: left, top, right and bottom of the pieces, most of which are nowhere near.
    """
    x, y = float(hole[0, 0]) - 0.5, float(hole[0, 1]) + 0.5
    near = np.flatnonzero((boxes_P4[:, :2] < (x, y)).all(axis=1) & (boxes_P4[:, 2:] > (x, y)).all(axis=1)).tolist()
    around = [pieces[index] for index in near if _is_inside(pieces[index][0], x, y)]
    return min(around, key=lambda piece: abs(area_of(piece[0])))


def _is_inside(loop: Loop, x: float, y: float) -> bool:
    x0, y0 = loop[:, 0], loop[:, 1]
    x1, y1 = _next(x0), _next(y0)
    crosses = (y0 > y) != (y1 > y)
    return bool((x0[crosses] + (y - y0[crosses]) * (x1 - x0)[crosses] / (y1 - y0)[crosses] < x).sum() % 2)


def area_of(loop: Loop) -> float:
    """Return the signed area that a loop encloses."""
    x, y = loop[:, 0], loop[:, 1]
    return float(np.dot(x, _next(y)) - np.dot(y, _next(x))) / 2


def _next(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the value after each, of the last the first: np.roll by -1, several times as fast for short rows."""
    return np.concatenate((values[1:], values[:1]))


def simplified(loop: Loop, tolerance_px: float) -> Loop:
    """Return a loop with fewer points, each left out no further than tolerance_px from the line that replaces it.

    Ramer (1972), Douglas and Peucker (1973), from the two points furthest apart along x + y. A loop that would fall below
    four points stays as it is.
    """
    if tolerance_px <= 0 or len(loop) <= 4:
        return loop
    first = int((loop[:, 0] + loop[:, 1]).argmin())
    ring = np.roll(loop, -first, axis=0)
    far = int((ring[:, 0] + ring[:, 1]).argmax())
    ring = np.concatenate((ring, ring[:1]))
    kept = np.zeros(len(ring), dtype=np.bool_)
    kept[[0, far, len(ring) - 1]] = True
    spans = [(0, far), (far, len(ring) - 1)]
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        between = ring[start + 1 : end] - ring[start]
        along = ring[end] - ring[start]
        length = float(np.hypot(*along))
        off = np.abs(between[:, 0] * along[1] - between[:, 1] * along[0]) / length if length else np.hypot(*between.T)
        worst = int(off.argmax())
        if off[worst] > tolerance_px:
            kept[start + 1 + worst] = True
            spans += [(start, start + 1 + worst), (start + 1 + worst, end)]
    found = ring[:-1][kept[:-1]]
    return found if len(found) >= 4 else loop


def without_holes(outer: Loop, holes: list[Loop]) -> Loop:
    """Return one loop that leaves the holes out: a cut of no width leads into each from its left.

    Fills that count crossings (COCO's, OpenCV's, a browser's even-odd) draw the same as with the holes.
    """
    loop = outer
    # By their leftmost corner: what lies left of the next one is then part of the loop.
    for hole in sorted(holes, key=lambda points: tuple(points[np.lexsort((points[:, 1], points[:, 0]))[0]])):
        first = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        ring = np.roll(hole, -first, axis=0)
        x, y = ring[0]
        x0, y0 = loop[:, 0], loop[:, 1]
        x1, y1 = _next(x0), _next(y0)
        rises = np.where(y1 != y0, y1 - y0, 1.0)
        meets = np.where(y1 != y0, x0 + (y - y0) * (x1 - x0) / rises, np.maximum(x0, x1))
        is_left = (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1)) & (meets <= x)
        if not is_left.any():  # a simplified outline may have drawn back behind its hole
            index, cut = int(np.hypot(x0 - x, y0 - y).argmin()), None
        else:
            index = int(np.where(is_left, meets, -np.inf).argmax())
            cut = np.array([[meets[index], y]])
        bridge = loop[index : index + 1] if cut is None else cut
        loop = np.concatenate((loop[: index + 1], bridge, ring, ring[:1], bridge, loop[index + 1 :]))
    return loop


def joined(loops: list[Loop]) -> Loop:
    """Return several loops as one: lines of no width lead from each to the nearest point of the next, and back."""
    whole = loops[0]
    for loop in loops[1:]:
        apart = np.abs(whole[:, None, :] - loop[None, :, :]).sum(axis=2) if len(whole) * len(loop) < 4_000_000 else None
        at, to = (0, 0) if apart is None else np.unravel_index(int(apart.argmin()), apart.shape)
        ring = np.roll(loop, -int(to), axis=0)
        whole = np.concatenate((whole[: at + 1], ring, ring[:1], whole[at:]))
    return whole
