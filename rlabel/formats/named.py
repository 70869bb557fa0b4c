"""Leaves the regions without a category out of a COCO file that `write_regions` wrote: training and evaluation cannot use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby

from rlabel.corpus.json_stream import Member, stream_members
from rlabel.formats.regions_file import Written
from rlabel.run.canonical import canonical_bytes
from rlabel.storage import Store


def keep_named(store: Store, name: str, written: Written) -> Written:
    """Write the file again without the regions that have no category, ids as they were, and return what it holds now."""
    if written.num_known == written.num_regions:
        return written
    store.put_stream(name, _chunks(store, name))
    return replace(written, num_regions=written.num_known)


def _chunks(store: Store, name: str) -> Iterator[bytes]:
    with closing(store.open_read(name)) as stream:
        groups = groupby(stream_members(stream, store.join(name)), key=lambda member: member.name)
        for number, (key, members) in enumerate(groups):
            yield (b",\n" if number else b"{") + canonical_bytes(key) + b":"
            yield from _value(key, members)
    yield b"}\n"


def _value(key: str, members: Iterator[Member]) -> Iterator[bytes]:
    """Yield an object or value in one piece, a list row by row."""
    is_list, is_first = False, True
    for member in members:
        if member.index is None:
            yield canonical_bytes(member.value)
            return
        if not is_list:
            is_list = True
            yield b"["
        if key == "annotations" and isinstance(member.value, dict) and "category_id" not in member.value:
            continue
        yield (b"\n" if is_first else b",\n") + canonical_bytes(member.value)
        is_first = False
    yield b"]"
