"""Layouts of one JSON file a picture (SA-1B's, labelme's): the files one by one, and the picture that each is of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.json_stream import parse_row
from rlabel.errors import InputError
from rlabel.formats.folders import PictureFolder, files_below, read_text
from rlabel.formats.found import Notes
from rlabel.records import JsonObject, JsonValue


class JsonFiles:
    """A folder of such files, or one. images: the picture folder; that of the files if None. title: what the layout calls its files."""

    def __init__(self, source: Path, images: str | None, notes: Notes, title: str) -> None:
        self.source, self.notes, self.title = source, notes, title
        self.root = source if source.is_dir() else source.parent
        self.folder = PictureFolder.of(images if images is not None else self.root)

    def documents(self, key: str) -> Iterator[tuple[str, JsonObject]]:
        """Yield the path below the folder, and the document, of every file that has a key, in order of the paths; others are noted."""
        for name in [self.source.name] if self.source.is_file() else files_below(self.source, (".json",)):
            try:
                document = parse_document(read_text(self.root / name, str(self.root / name)))
            except (InputError, ValueError, RecursionError) as error:
                self.notes.say("files left out, since they are not JSON that can be read", f"{name}: {error}")
                continue
            if isinstance(document, dict) and isinstance(document.get(key), dict | list):
                yield name, document
            else:
                self.notes.say(f"files left out, since they have not {self.title}", name)

    def picture(self, stated: JsonValue, name: str) -> str:
        """Return the picture of a file below the picture folder: what the file states, beside it, or of its own stem; noted if not there.

        stated: what the document calls its picture. name: path of the JSON file below its folder.
        """
        home, _, last = name.rpartition("/")
        stem = last.rpartition(".")[0]
        known = stated.replace("\\", "/") if isinstance(stated, str) and stated.strip() else None
        found = None
        if known is not None:
            found = (self.folder.find(f"{home}/{known}") if home else None) or self.folder.find(known)
        found = found or self.folder.of_stem(f"{home}/{stem}" if home else stem)
        if found is None:
            self.notes.say("pictures that are not in the picture folder", known or stem)
        return found or (f"{stem}.jpg" if known is None else known.rpartition("/")[2])


def parse_document(text: str) -> JsonValue:
    """Return the value of a JSON text; NaN and infinities are None. Raises ValueError or RecursionError."""
    try:
        return parse_row(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}") from error
