"""Files of a layout on this machine: what a folder holds, what a picture's header says. Never leaves the folder it was given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rlabel.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

PICTURE_ENDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif", ".avif", ".heic")
_MOST_FILES = 20_000_000
_MOST_TEXT_BYTES = 64 * 1024 * 1024
_ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4; 5 to 8 lie on their side


def local_source(url: str) -> Path:
    """Return what the user named, as a path. Raises UsageError for what is not on this machine, InputError for nothing there."""
    if "://" in url:
        raise UsageError(f"{url}: other layouts than COCO are read from this machine's disks. Copy it here first.")
    path = Path(os.path.realpath(url))
    if not path.exists():
        raise InputError(f"{url}: there is no such file or folder. Check the path.")
    return path


def files_below(root: Path, ends: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths below a folder, "/"-separated and sorted, whose names end so (in any case). Links are not followed.

    Raises InputError beyond 20 million files.
    """
    num_files = 0
    folders = [""]
    while folders:
        folder = folders.pop()
        names: list[str] = []
        inner: list[str] = []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.name)
                elif entry.name.lower().endswith(ends) and entry.is_file():
                    names.append(entry.name)
        num_files += len(names)
        if num_files > _MOST_FILES:
            raise InputError(f"{root}: more than {_MOST_FILES} files. Convert its folders one by one.")
        yield from (f"{folder}/{name}" if folder else name for name in sorted(names))
        folders += [f"{folder}/{name}" if folder else name for name in sorted(inner, reverse=True)]


def inside(root: Path, name: str) -> Path | None:
    """Return the file of a name that somebody else wrote, links followed; None where it is not a file below root."""
    if not name or "\0" in name or "://" in name:
        return None
    try:
        path = Path(os.path.realpath(root / name))
        is_ours = root in path.parents and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_ours else None


def read_text(path: Path, where: str) -> str:
    """Return a small text file. Raises InputError for one above 64 MiB, or that is not UTF-8."""
    size = path.stat().st_size
    if size > _MOST_TEXT_BYTES:
        raise InputError(f"{where}: expected a text of at most {_MOST_TEXT_BYTES} bytes, got {size}. Check the file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{where}: expected UTF-8 text ({error}). Save it as UTF-8.") from error


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a picture as it is seen (EXIF applied), by its header; None where it is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return upright_sides(image)
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        return None


def upright_sides(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened picture as it is seen."""
    width, height = image.size
    try:
        is_turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Pillow's EXIF reader raises many kinds on odd bytes; the picture itself may be fine
        is_turned = False
    return (height, width) if is_turned else (width, height)


class PictureFolder:
    """The pictures below a folder, by path, by bare name and by stem, so that a layout may name one as it likes.

    It is listed when somebody asks for what is not simply there: a list of ten million pictures takes gigabytes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, root: str | Path) -> PictureFolder:
        """Return the pictures below a folder. Raises UsageError where there is no such folder."""
        folder = Path(os.path.realpath(root))
        if not folder.is_dir():
            raise UsageError(f"--images {root}: expected the folder of the pictures, got no folder. Check the path.")
        return cls(folder)

    @cached_property
    def by_path(self) -> dict[str, str]:
        """The pictures' paths below the folder, by the same without their endings."""
        return {path.rpartition(".")[0]: path for path in files_below(self.root, PICTURE_ENDS)}

    @cached_property
    def _by_name(self) -> dict[str, str | None]:
        return _named((path.rpartition("/")[2], path) for path in self.by_path.values())

    @cached_property
    def _by_stem(self) -> dict[str, str | None]:
        return _named((stem.rpartition("/")[2], path) for stem, path in self.by_path.items())

    def find(self, name: str) -> str | None:
        """Return the path below the folder of a picture that somebody names; None where it is missing or ambiguous."""
        clean = name.replace("\\", "/").lstrip("/")
        path = inside(self.root, clean)
        if path is not None:
            return path.relative_to(self.root).as_posix()
        last = clean.rpartition("/")[2]
        return self._by_name.get(last)

    def of_stem(self, stem: str) -> str | None:
        """Return the picture of a path without its ending, or of a bare stem that only one picture has."""
        beside = (f"{stem}{end}" for end in PICTURE_ENDS)
        there = next((path for path in beside if (self.root / path).is_file()), None)
        if there is not None and inside(self.root, there) is not None:
            return there
        return self.by_path.get(stem) or self._by_stem.get(stem.rpartition("/")[2])

    def size(self, path: str) -> tuple[int, int] | None:
        return upright_size(self.root / path)


def _named(pairs: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    """Return paths by names; a name twice names neither."""
    named: dict[str, str | None] = {}
    for key, path in pairs:
        named[key] = None if key in named else path
    return named
