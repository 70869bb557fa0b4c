"""A mask as the pieces of its columns: a few kilobytes where the bitmap of a region of a large picture has megabytes.

Draws any window of it at once at the scale that is asked for, so that no bitmap of the whole is ever made. Exact: sums of
whole pixels, rounded once. Knows nothing of files.

Legend: N pieces, each of one column; H, W rows and columns of the picture; h, w those of what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlabel.corpus.rle import Counts, MaskHW

Places = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Where a mask is, column by column.

    x_N: int32, the column of each piece, rising. top_N, bottom_N: int32, its first row and the one after its last; pieces
    of a column rise, and none touches the next.
    """

    x_N: Places
    top_N: Places
    bottom_N: Places

    @property
    def num_bytes(self) -> int:
        return 3 * self.x_N.nbytes

    @property
    def area_px(self) -> int:
        return int((self.bottom_N - self.top_N).sum(dtype=np.int64))

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of a mask that is not empty, tight, in whole pixels."""
        return int(self.x_N[0]), int(self.top_N.min()), int(self.x_N[-1]) + 1, int(self.bottom_N.max())

    def bitmap(self, left: int, top: int, right: int, bottom: int) -> MaskHW:
        """Return a window of the mask: bool (bottom - top, right - left), True inside, C order."""
        out_hw = np.zeros((bottom - top, right - left), dtype=np.uint8)
        self._cover(out_hw, left, top, 1, 1)
        return out_hw.view(np.bool_)

    def shares(self, left: int, top: int, right: int, bottom: int, scale: int) -> npt.NDArray[np.uint8]:
        """Return how much of each cell of scale x scale pixels is inside, 255 for all of it. uint8, rounded.

        The window is given in cells, counted from the picture's corner; what it holds is (bottom - top, right - left).
        scale: 1 to 11, so that 255 for each pixel of a cell is a 16-bit number.
        """
        out_hw = np.zeros((bottom - top, right - left), dtype=np.uint8)
        self._cover(out_hw, left, top, scale, 255)
        return out_hw

    def _cover(self, out_hw: npt.NDArray[np.uint8], left: int, top: int, scale: int, full: int) -> None:
        """Write into a window of zeros how much of each cell is inside, `full` for all of it.

        A piece adds where it begins and takes away where it ends; summed down the columns that is the cover. Neighbouring
        columns are the digits of one 64-bit number and are summed together: carries between digits cancel, since in the
        end each digit is in its range.
        """
        height, width = out_hw.shape
        x_N, from_N, to_N = self._within(left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        if not x_N.size:
            return
        # Only where the mask is: it may fill a small part of the window.
        first_column, after_column = int(x_N[0]) // scale, int(x_N[-1]) // scale + 1
        first_row, after_row = int(from_N.min()) // scale, (int(to_N.max()) - 1) // scale + 1
        digit = np.dtype("<u1" if scale == 1 else "<u2")
        num_digits = 8 // digit.itemsize
        num_words = -(-(after_column - first_column) // num_digits)
        words = np.zeros((after_row - first_row + 2, num_words), dtype="<u8")
        sums = words.ravel()
        column_N = x_N // scale - first_column
        shift_N = column_N % num_digits * (8 * digit.itemsize)
        each_N = np.uint64(full if scale == 1 else 1) << shift_N.astype(np.uint64)
        for change, rows_N in ((np.add, from_N), (np.subtract, to_N)):
            cell_N = rows_N // scale
            place_N = (cell_N - first_row) * num_words + column_N // num_digits
            below_N = (rows_N - cell_N * scale).astype(np.uint64)
            # From this row on every cell is covered: so many rows of its own cell, and all of those below it.
            change.at(sums, place_N, each_N * (np.uint64(scale) - below_N))
            if scale > 1:
                change.at(sums, place_N + num_words, each_N * below_N)
        covered = np.add.accumulate(words, axis=0, out=words)[:-2].view(digit)[:, : after_column - first_column]
        if scale > 1:
            covered = (covered * np.uint16(2 * full) + np.uint16(scale**2)) // np.uint16(2 * scale**2)
        out_hw[first_row - top : after_row - top, first_column - left : after_column - left] = covered

    def cell_shares(self, height: int, width: int, num_rows: int, num_columns: int) -> npt.NDArray[np.float32]:
        """Return how much is inside of each of the equal cells that a picture of height x width pixels is cut into.

        float32 (num_rows, num_columns), [0, 1]; cells must be at least a pixel wide and high.
        """
        assert num_columns <= width and num_rows <= height
        begins_N, ends_N = self.x_N * (num_columns / width), (self.x_N + 1) * (num_columns / width)
        cell_N = np.minimum(begins_N.astype(np.int64), num_columns - 1)
        in_next_N = np.maximum(ends_N - (cell_N + 1), 0.0)
        places, weights = [], []
        for sign, rows_N in ((1.0, self.top_N), (-1.0, self.bottom_N)):
            at_N = rows_N * (num_rows / height)
            row_N = at_N.astype(np.int64)
            below_N = at_N - row_N
            for column_N, wide_N in ((cell_N, ends_N - begins_N - in_next_N), (cell_N + 1, in_next_N)):
                first_N = column_N * (num_rows + 2) + row_N
                places += [first_N, first_N + 1]
                weights += [sign * wide_N * (1.0 - below_N), sign * wide_N * below_N]
        sums = np.bincount(
            np.concatenate(places), np.concatenate(weights), minlength=(num_columns + 1) * (num_rows + 2)
        ).reshape(num_columns + 1, num_rows + 2)
        shares = sums[:num_columns, :num_rows].cumsum(axis=1).T
        # Rounding leaves traces of 1e-17 below a mask, where nothing of it is.
        shares[shares < 1e-12] = 0.0
        return np.minimum(shares, 1.0).astype(np.float32)

    def counts(self, height: int, width: int) -> Counts:
        """Return the mask as COCO's runs: int64, outside first, down the columns of a picture of height x width."""
        starts_N = self.x_N.astype(np.int64) * height + self.top_N
        stops_N = starts_N + (self.bottom_N - self.top_N)
        starts_N, stops_N = _joined(starts_N, stops_N)
        edges = np.stack([starts_N, stops_N], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=height * width)
        return counts if counts[-1] else counts[:-1]

    def _within(self, left: int, top: int, right: int, bottom: int) -> tuple[Places, Places, Places]:
        """Return the pieces in a window, cut to it: columns, first rows, rows after the last."""
        first, after = np.searchsorted(self.x_N, (left, right))
        x_N = self.x_N[first:after]
        from_N = np.maximum(self.top_N[first:after], top)
        to_N = np.minimum(self.bottom_N[first:after], bottom)
        kept_N = to_N > from_N
        return (x_N, from_N, to_N) if kept_N.all() else (x_N[kept_N], from_N[kept_N], to_N[kept_N])


def runs_of_counts(counts: Counts, height_px: int) -> Runs:
    """Return the pieces of checked counts (see `rle`) that hold a True."""
    ends = np.cumsum(counts)
    lengths_N = counts[1::2]
    kept_N = lengths_N > 0
    stops_N = ends[1::2][kept_N]
    starts_N, stops_N = _joined(stops_N - lengths_N[kept_N], stops_N)
    first_N, last_N = starts_N // height_px, (stops_N - 1) // height_px
    num_N = last_N - first_N + 1
    piece_N = np.repeat(np.arange(num_N.size), num_N)
    x_N = first_N[piece_N] + np.arange(piece_N.size) - (np.cumsum(num_N) - num_N)[piece_N]
    return Runs(
        x_N=x_N.astype(np.int32),
        top_N=np.maximum(starts_N[piece_N] - x_N * height_px, 0).astype(np.int32),
        bottom_N=np.minimum(stops_N[piece_N] - x_N * height_px, height_px).astype(np.int32),
    )


def runs_of_bitmap(crop_HW: MaskHW, left_px: int, top_px: int) -> Runs:
    """Return the pieces of a bitmap, bool (h, w), whose corner lies at (left_px, top_px) in its picture."""
    padded_wh = np.zeros((crop_HW.shape[1], crop_HW.shape[0] + 2), dtype=np.int8)
    padded_wh[:, 1:-1] = crop_HW.T
    x_N, row_N = np.nonzero(np.diff(padded_wh, axis=1))  # in turn where a piece begins and where it has ended
    return Runs(
        x_N=(x_N[::2] + left_px).astype(np.int32),
        top_N=(row_N[::2] + top_px).astype(np.int32),
        bottom_N=(row_N[1::2] + top_px).astype(np.int32),
    )


def runs_of_box(left: int, top: int, right: int, bottom: int) -> Runs:
    """Return the pieces of a filled box, in whole pixels."""
    x_N = np.arange(left, right, dtype=np.int32)
    return Runs(x_N=x_N, top_N=np.full_like(x_N, top), bottom_N=np.full_like(x_N, bottom))


def _joined(starts_N: Counts, stops_N: Counts) -> tuple[Counts, Counts]:
    """Return rising pieces with those that touch made one."""
    apart = starts_N[1:] > stops_N[:-1]
    if apart.all():
        return starts_N, stops_N
    ends = np.ones(1, dtype=np.bool_)
    return starts_N[np.concatenate((ends, apart))], stops_N[np.concatenate((apart, ends))]
