"""Packs WordNet's nouns into the file that rlabel carries, with WordNet's licence beside it.

    python -m rlabel.vocabulary.wordnet_pack FOLDER rlabel/vocabulary/wordnet

FOLDER holds WordNet's `index.noun` and `data.noun` (format: wndb(5WN)). Kept are nouns, their senses in order and what each sense is
directly a kind of; glosses, other pointers and other parts of speech are left out. Run again on the same files it writes the same bytes.

The file is a .npz of NumPy: nouns, the UTF-8 bytes of all nouns, sorted, "\n" between; num_senses (N,), uint8, of each noun, and senses,
uint32, of all nouns in that order; num_kinds (S,), uint8, of each sense, and kinds, uint32, of all senses in that order. Senses are
counted from 0 in the order of data.noun. `thesaurus.unpack` reads it.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np

from rlabel.errors import InputError, RlabelError
from rlabel.vocabulary.thesaurus import PACKED, read_wordnet, unpack

LICENSE = "LICENSE"


def pack(folder: str) -> bytes:
    """Return the content of the packed file. Raises InputError where the folder does not hold WordNet's nouns."""
    senses_of, kinds_of = read_wordnet(folder)
    in_order = sorted({*kinds_of, *(sense for senses in senses_of.values() for sense in senses)})
    number_of = {sense: number for number, sense in enumerate(in_order)}
    nouns = sorted(senses_of)
    unknown = next((kind for kinds in kinds_of.values() for kind in kinds if kind not in number_of), None)
    if unknown is not None:
        raise InputError(
            f"{folder}: expected entries of all senses, got none at byte {unknown}. Check that data.noun is whole."
        )
    file = BytesIO()
    np.savez_compressed(
        file,
        nouns=np.frombuffer("\n".join(nouns).encode("utf-8"), dtype=np.uint8),
        num_senses=np.array([len(senses_of[noun]) for noun in nouns], dtype=np.uint8),
        senses=np.array([number_of[sense] for noun in nouns for sense in senses_of[noun]], dtype="<u4"),
        num_kinds=np.array([len(kinds_of.get(sense, ())) for sense in in_order], dtype=np.uint8),
        kinds=np.array([number_of[kind] for sense in in_order for kind in kinds_of.get(sense, ())], dtype="<u4"),
    )
    return file.getvalue()


def licence_text(folder: str) -> str:
    """Return the licence at the top of data.noun: the numbered lines that start with two spaces. Raises InputError for none."""
    lines = []
    with open(Path(folder) / "data.noun", encoding="utf-8") as file:
        for line in file:
            if not line.startswith("  "):
                break
            lines.append(line.split(maxsplit=1)[1].rstrip() if len(line.split()) > 1 else "")
    if not any("Copyright" in line for line in lines):
        raise InputError(
            f"{folder}/data.noun: expected WordNet's licence at its top, got none. Take the file as WordNet publishes it."
        )
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write both files and say how large they are."""
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER OUT")
    folder, out = sys.argv[1], Path(sys.argv[2])
    try:
        content, licence = pack(folder), licence_text(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / PACKED.name).write_bytes(content)
        (out / LICENSE).write_text(licence, encoding="utf-8")
        unpack(out / PACKED.name)
    except (RlabelError, OSError) as error:
        raise SystemExit(f"wordnet_pack: {error}") from error
    print(f"{out / PACKED.name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
