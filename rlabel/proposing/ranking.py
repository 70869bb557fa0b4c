"""How much a region of a hierarchy looks like a thing: a logistic regression on a few measures of it, all without unit.

Fitted to 112 composed pictures of drawn and photographed objects; on photographs of another kind the order is less sure than the regions.
"""

from __future__ import annotations

from math import exp, log

from rlabel.proposing.hierarchy import Node

# Measure -> weight: of the log odds that the box has an IoU of 0.7 and more with a thing's.
_WEIGHTS = {
    "outer": 0.633,
    "inner": 0.219,
    "sharpness": 0.222,
    "contrast": 2.47,
    "spread": -0.713,
    "born": -0.023,
    "dies": -0.02,
    "lasting": 0.041,
    "share": -1.774,
    "share_squared": -3.191,
    "fill": 3.085,
    "fill_squared": 2.291,
    "outline": 8.157,
    "outline_squared": -1.305,
    "edge": 9.145,
    "edge_root": -11.417,
    "votes": 0.101,
    "stretch": -3.38,
    "patches": -0.171,
}
_BIAS = -27.414


def measures(node: Node, votes: int, area_px: int) -> dict[str, float]:
    """Return what is measured of a region. votes: hierarchies that it is in; area_px: of the small picture."""
    left, top, right, bottom = node.box_xyxy
    width, height = right - left, bottom - top
    share = log(node.size_px / area_px)
    fill = node.size_px / (width * height)
    outline = log((node.perimeter_px + node.edge_px) / node.size_px**0.5)
    edge = node.edge_px / (node.edge_px + node.perimeter_px + 1.0)
    outer, inner = log(node.outer + 1.0), log(node.inner + 1.0)
    born, dies = log(node.born + 1.0), log(node.dies + 1.0)
    return {
        "outer": outer,
        "inner": inner,
        "sharpness": outer - inner,
        "contrast": log(node.contrast + 1.0),
        "spread": log(node.spread + 1.0),
        "born": born,
        "dies": dies,
        "lasting": dies - born,
        "share": share,
        "share_squared": share * share / 10.0,
        "fill": fill,
        "fill_squared": fill * fill,
        "outline": outline,
        "outline_squared": outline * outline,
        "edge": edge,
        "edge_root": edge**0.5,
        "votes": float(votes - 1),
        "stretch": abs(log(width / height)),
        "patches": log(node.patches.bit_count()),
    }


def likeness(node: Node, votes: int, area_px: int) -> float:
    """Return how sure it is that a region is a thing, in (0, 1)."""
    found = measures(node, votes, area_px)
    total = _BIAS + sum(_WEIGHTS[name] * value for name, value in found.items())
    return 1.0 / (1.0 + exp(min(-total, 700.0)))
