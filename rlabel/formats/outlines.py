"""A mask as polygons along the edges of its pixels, so that drawing them gives the mask again.

Why not a contour library: theirs run through the centres of border pixels (OpenCV's) or between them (marching squares), which
costs a small object a fifth of its area. Along the edges nothing is lost, and what `simplified` then loses is measured.

Legend: K corners, where the outline turns; N pieces of the mask's columns; P pieces of the mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlabel.corpus.runs import Runs

Points = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Loop = Points  # (n, 2), x then y, closed without repeating its first point

# What turns an outline: a piece of the column to the right of it, else to the left; where it stops, else starts.
_STOPS, _RIGHT = 1, 2


def outlines(runs: Runs) -> list[tuple[Loop, list[Loop]]]:
    """Return each piece of a mask as its outer loop and the loops of its holes, in pixels from the corner of the mask's box.

    runs: not empty. Pieces touch at corners at most (4-connected), in the order of their first pixel by rows.
    """
    pieces: list[tuple[Loop, list[Loop]]] = []
    holes: list[Loop] = []
    for loop, is_hole in _loops(runs):
        if is_hole:
            holes.append(loop)
        else:
            pieces.append((loop, []))
    if len(pieces) == 1:
        return [(pieces[0][0], holes)]
    if holes:
        boxes_P4 = np.array([(*outer.min(axis=0), *outer.max(axis=0)) for outer, _ in pieces])
        for hole in holes:
            _piece_around(pieces, boxes_P4, hole)[1].append(hole)
    return pieces


def _loops(runs: Runs) -> list[tuple[Loop, bool]]:
    """Return every closed line between inside and outside, and whether it goes round a hole, in the order of first corners by rows.

    Along a row, corners pair up to edges, along a column too, and following the two kinds in turn walks a loop.
    """
    x_K, y_K, stops_K, is_outer_K = _corners(runs)
    # Of the two corners of a saddle the one where a piece stops comes first: it ends the edge from the left.
    by_rows_K = np.argsort((y_K * (int(x_K[-1]) + 1) + x_K) * 2 - stops_K)
    along_row_K = np.empty_like(by_rows_K)
    along_row_K[by_rows_K] = by_rows_K.reshape(-1, 2)[:, ::-1].ravel()
    after = (along_row_K ^ 1).tolist()  # along the row, then along the column
    visited = bytearray(x_K.size)
    order: list[int] = []
    begins: list[int] = []
    for start in by_rows_K[::2].tolist():
        if visited[start]:
            continue
        begins.append(len(order))
        order.append(start)
        at = after[start]
        while at != start:
            order.append(at)
            at = after[at]
        if 2 * len(order) == x_K.size:
            break
        for at in order[begins[-1] :]:
            visited[at] = visited[after[at] ^ 1] = 1
    from_K = np.array(order)
    points = np.empty((from_K.size, 2, 2))
    points[:, 0, 0], points[:, 1, 0] = x_K[from_K], x_K[along_row_K[from_K]]
    points[:, :, 1] = y_K[from_K, None]
    loops = [points[begin:end].reshape(-1, 2) for begin, end in zip(begins, [*begins[1:], len(order)], strict=True)]
    return list(zip(loops, (~is_outer_K[from_K[begins]]).tolist(), strict=True))


def _corners(runs: Runs) -> tuple[Numbers, Numbers, Numbers, npt.NDArray[np.bool_]]:
    """Return where the outline turns, column by column: x, y, 1 where a piece stops (0: starts), and whether one to the right starts.

    Every piece of a column turns the lines on both of its sides, where it starts and where it stops. Where the pieces left
    and right of a line do the same, nothing turns; where one stops and the other starts, two pixels touch across from each
    other (a saddle), and the corner is there twice. Corners 2 i and 2 i + 1 are the ends of an edge along a column.
    """
    left, top, _, bottom = runs.box_xyxy
    stride = bottom - top + 1
    # A place by columns, times 8: then in the same place no two codes are the same, and in others they differ by more.
    before_N = (runs.x_N.astype(np.int64) - left) * stride - top
    codes_N2 = np.stack((before_N + runs.top_N, before_N + runs.bottom_N), axis=1) * 8 + np.array(
        [_RIGHT, _RIGHT | _STOPS]
    )
    right = codes_N2.ravel()
    codes = np.sort(np.concatenate((right, right + (8 * stride - _RIGHT))), kind="stable")  # of two rising halves
    same = np.flatnonzero(codes[1:] - codes[:-1] == _RIGHT)
    if same.size:
        turns = np.ones(codes.size, dtype=np.bool_)
        turns[same] = turns[same + 1] = False
        codes = codes[turns]
    x_K, y_K = np.divmod(codes >> 3, stride)
    return x_K, y_K, codes & _STOPS, (codes & (_RIGHT | _STOPS)) == _RIGHT


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
    ring = _from(loop, first)
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
    for ring in sorted(map(_from_leftmost, holes), key=lambda ring: (ring[0, 0], ring[0, 1])):
        x, y = ring[0]
        x0, y0 = loop[:, 0], loop[:, 1]
        x1, y1 = _next(x0), _next(y0)
        near = np.flatnonzero((np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1)))
        x0, y0, x1, y1 = x0[near], y0[near], x1[near], y1[near]
        rises = np.where(y1 != y0, y1 - y0, 1.0)
        meets = np.where(y1 != y0, x0 + (y - y0) * (x1 - x0) / rises, np.maximum(x0, x1))
        is_left = meets <= x
        if not is_left.any():  # a simplified outline may have drawn back behind its hole
            index = int(np.hypot(loop[:, 0] - x, loop[:, 1] - y).argmin())
            bridge = loop[index : index + 1]
        else:
            nearest = int(np.where(is_left, meets, -np.inf).argmax())
            index, bridge = int(near[nearest]), np.array([[meets[nearest], y]])
        loop = np.concatenate((loop[: index + 1], bridge, ring, ring[:1], bridge, loop[index + 1 :]))
    return loop


def _from_leftmost(loop: Loop) -> Loop:
    """Return the same loop from its leftmost corner on, of those the uppermost."""
    return _from(loop, int(np.lexsort((loop[:, 1], loop[:, 0]))[0]))


def _from(loop: Loop, index: int) -> Loop:
    """Return the same loop from another point on: np.roll, several times as fast for short loops."""
    return np.concatenate((loop[index:], loop[:index]))


def _nearest(whole: Loop, loop: Loop) -> tuple[int, int]:
    """Return the points of two loops that are nearest to each other along x + y, of equal ones the first."""
    apart = np.abs(np.subtract.outer(whole[:, 0], loop[:, 0]))
    down = np.subtract.outer(whole[:, 1], loop[:, 1])
    apart += np.abs(down, out=down)
    return divmod(int(apart.argmin()), len(loop))


def joined(loops: list[Loop]) -> Loop:
    """Return several loops as one: lines of no width lead from each to the nearest point of the next, and back."""
    whole = loops[0]
    for loop in loops[1:]:
        at, to = _nearest(whole, loop) if len(whole) * len(loop) < 4_000_000 else (0, 0)
        ring = _from(loop, to)
        whole = np.concatenate((whole[: at + 1], ring, ring[:1], whole[at:]))
    return whole
