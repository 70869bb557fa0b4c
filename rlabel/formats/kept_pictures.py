"""Writes the pictures that an archive or a table holds into a folder, under names that cannot lead out of it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Literal

from rlabel.corpus.limits import Limits
from rlabel.errors import UsageError
from rlabel.formats.folders import upright_sides

Keep = Literal["new", "again", "no"]

_ODD = re.compile(r"[^\w.+=@-]+")
_ENDS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif", "MPO": ".jpg"}
_LONGEST_NAME = 120


class KeptPictures:
    """A folder that pictures are written into as they are, byte for byte.

    keep: new: into a folder that is not there or empty; again: into one that the same source was written into before, where what is
    there stays; no: nowhere, for those who want their sizes alone.
    """

    def __init__(self, folder: str | None, what: str, keep: Keep = "new") -> None:
        self.limits = Limits()
        self.used: set[str] = set()
        self.keep_how = keep
        if keep == "no":
            return
        if folder is None:
            raise UsageError(f"{what} holds its pictures itself. Name a new or empty folder for them with --images.")
        self.root = Path(folder)
        if self.root.exists() and (not self.root.is_dir() or (keep == "new" and any(self.root.iterdir()))):
            raise UsageError(
                f"--images {folder}: expected a new or empty folder, into which the pictures of {what} are written. Name another."
            )
        self.root.mkdir(parents=True, exist_ok=True)

    def keep(self, name: str, data: bytes) -> tuple[str, tuple[int, int]] | str:
        """Write a picture; return its file name and upright width and height, or why it is left out.

        name: what the source calls it, which decides the file's name as far as it can.
        """
        from PIL import Image

        if len(data) > self.limits.max_file_bytes:
            return f"pictures left out: larger than the limit of {self.limits.max_file_bytes} bytes"
        try:
            with Image.open(io.BytesIO(data)) as image:
                end = _ENDS.get(image.format or "")
                size = upright_sides(image)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
            end, size = None, (0, 0)
        if end is None:
            return "pictures left out, since they cannot be opened"
        kept = self._free_name(name, end)
        if self.keep_how != "no":
            path = self.root / kept
            # Another process may be reading one that is whole.
            if self.keep_how == "new" or not path.is_file() or path.stat().st_size != len(data):
                path.write_bytes(data)
        return kept, size

    def _free_name(self, name: str, end: str) -> str:
        """Return a file name of letters that every disk takes, of no other picture, with the ending of what it is."""
        last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        stem = _ODD.sub("_", Path(last).stem).strip("._")[:_LONGEST_NAME] or "picture"
        chosen, number = stem + end, 1
        while chosen.lower() in self.used:  # some disks take A.jpg and a.jpg for one
            number += 1
            chosen = f"{stem}-{number}{end}"
        self.used.add(chosen.lower())
        return chosen
