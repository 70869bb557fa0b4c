"""Area averages of masks: each output cell holds the share of it that is inside, so that no mask vanishes however
small.

Legend: H, W rows and columns of the mask; the window is cut into out_height x out_width equal cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_] | npt.NDArray[np.floating]


def area_resample(mask_HW: Mask, out_height: int, out_width: int) -> npt.NDArray[np.float32]:
    """Return the mean of the mask over each cell. float32 (out_height, out_width); in [0, 1] for a bool mask.

    mask_HW: bool or float (H, W). The cells part the whole mask evenly, so the mean of the mask is kept.
    """
    height, width = mask_HW.shape
    return area_resample_window(mask_HW, (0.0, 0.0, float(width), float(height)), out_height, out_width)


def area_resample_window(
    mask_HW: Mask, window_xyxy: tuple[float, float, float, float], out_height: int, out_width: int
) -> npt.NDArray[np.float32]:
    """Return the mean of the mask over each cell of a window of it. float32 (out_height, out_width).

    window_xyxy: left, top, right, bottom in the mask's pixels, fractions allowed; outside the mask counts as 0.

    Raises ValueError for an empty window or output.
    """
    x0, y0, x1, y1 = window_xyxy
    if not (x1 > x0 and y1 > y0 and out_height > 0 and out_width > 0):
        raise ValueError(f"area_resample_window: window {window_xyxy} to {out_height} x {out_width}: nothing to fill")
    # Only the part that is not 0 counts: a small mask in a large picture costs little.
    rows = np.flatnonzero(mask_HW.any(axis=1))
    if not rows.size:
        return np.zeros((out_height, out_width), dtype=np.float32)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask_HW[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    part_hw = mask_HW[top:bottom, left:right].astype(np.float32)
    across_Yh = _overlaps(y0, y1, out_height, top, bottom)
    along_Xw = _overlaps(x0, x1, out_width, left, right)
    return np.asarray(across_Yh @ part_hw @ along_Xw.T, dtype=np.float32)


def _overlaps(start: float, stop: float, num_cells: int, first: int, after: int) -> npt.NDArray[np.float32]:
    """Return the share of each cell that each pixel of [first, after) covers. float32 (num_cells, after - first)."""
    edges = start + (stop - start) * (np.arange(num_cells + 1, dtype=np.float64) / num_cells)
    pixels = np.arange(first, after, dtype=np.float64)
    shared = np.minimum(edges[1:, None], pixels + 1.0) - np.maximum(edges[:-1, None], pixels)
    shares = np.maximum(shared, 0.0) * (num_cells / (stop - start))
    return np.asarray(shares, dtype=np.float32)
