"""Pickles that nobody should trust: plain values come out of them, and nothing else happens."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_factories import refcoco_folder, refcoco_refs
from rlabel.corpus.open import open_labeled
from rlabel.corpus.plain_pickle import load_plain
from rlabel.errors import InputError


class Runs:
    """Asks, when unpickled, for a file to be made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_is_refused_and_does_not(tmp_path, protocol):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Runs(mark), protocol)).close()
    assert mark.exists()  # it would have
    mark.unlink()
    folder = refcoco_folder(tmp_path, [*refcoco_refs(), Runs(mark)], protocol=protocol)
    with pytest.raises(InputError, match=r"more than plain values \(opcode (STACK_)?GLOBAL for .*open\).*json.dump"):
        open_labeled("refcoco", folder, "val")
    assert not mark.exists()


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", bytearray(b"x"), 1j, date(2020, 1, 1), OrderedDict(a=1), eval, Path, int]
)
def test_only_plain_values_come_out_of_a_pickle(value):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InputError, match="more than plain values"):
            load_plain(pickle.dumps([value], protocol), "x.p")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_out_as_python_s_own_pickle_gives_them(value, protocol):
    assert load_plain(pickle.dumps(value, protocol), "x.p") == value


@given(st.binary(max_size=60))
def test_any_bytes_are_plain_values_or_one_clear_error(data):
    try:
        load_plain(data, "x.p")
    except InputError as error:
        assert "x.p" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_a_few_bytes_never_take_gigabytes():
    import resource  # not on every platform

    bombs = [
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04\x96\xff\xff\xff\xff\x01\x00\x00\x00.",
        b"\x80\x04\x8d\xff\xff\xff\xff\x01\x00\x00\x00x.",
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in bombs:
        with suppress(InputError):
            load_plain(data, "x.p")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
