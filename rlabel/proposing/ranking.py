"""How much a region of a hierarchy looks like a thing: a logistic regression on a few measures of it, all without unit.

Fitted to 112 composed pictures of drawn and photographed objects; on photographs of another kind the order is less sure than the regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlabel.proposing.hierarchy import Nodes

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


def measures(nodes: Nodes, votes_M: npt.NDArray[np.int64], area_px: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return what is measured of each region, (M,) by name. votes_M: hierarchies that it is in; area_px: of the small picture."""
    left_M, top_M, right_M, bottom_M = nodes.boxes_M4.T
    width_M, height_M = right_M - left_M, bottom_M - top_M
    share_M = np.log(nodes.sizes_M / area_px)
    fill_M = nodes.sizes_M / (width_M * height_M)
    outline_M = np.log((nodes.perimeters_M + nodes.edges_M) / np.sqrt(nodes.sizes_M))
    edge_M = nodes.edges_M / (nodes.edges_M + nodes.perimeters_M + 1.0)
    outer_M, inner_M = np.log(nodes.outer_M + 1.0), np.log(nodes.inner_M + 1.0)
    born_M, dies_M = np.log(nodes.born_M + 1.0), np.log(nodes.dies_M + 1.0)
    return {
        "outer": outer_M,
        "inner": inner_M,
        "sharpness": outer_M - inner_M,
        "contrast": np.log(nodes.contrasts_M + 1.0),
        "spread": np.log(nodes.spreads_M + 1.0),
        "born": born_M,
        "dies": dies_M,
        "lasting": dies_M - born_M,
        "share": share_M,
        "share_squared": share_M * share_M / 10.0,
        "fill": fill_M,
        "fill_squared": fill_M * fill_M,
        "outline": outline_M,
        "outline_squared": outline_M * outline_M,
        "edge": edge_M,
        "edge_root": np.sqrt(edge_M),
        "votes": votes_M - 1.0,
        "stretch": np.abs(np.log(width_M / height_M)),
        "patches": np.log(np.asarray([one.bit_count() for one in nodes.patches], dtype=np.float64)),
    }


def likeness(nodes: Nodes, votes_M: npt.NDArray[np.int64], area_px: int) -> npt.NDArray[np.float64]:
    """Return how sure it is that each region is a thing: (M,), in (0, 1)."""
    total_M = np.full(len(nodes.patches), _BIAS)
    for name, values_M in measures(nodes, votes_M, area_px).items():
        total_M += _WEIGHTS[name] * values_M
    likeness_M: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(np.minimum(-total_M, 700.0)))
    return likeness_M
