"""Reads a pickle of plain values and refuses every other, before anything in it could run.

What a pickle can do is decided by its opcodes, so only those that build lists, dicts, tuples, texts and numbers are known
here: none that imports, calls or restores an object. Python's own machine (`pickle._Unpickler`) is used and not the C one,
since there an index for the memo of a few bytes makes it allocate gigabytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

from rlabel.errors import InputError

# fmt: off
_PLAIN_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GET", "BINGET", "LONG_BINGET",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
})
# fmt: on
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_REMEDY = (
    "Only lists, dicts, texts and numbers are read from a pickle. If you trust the file, load it yourself, write its list "
    "with json.dump, and name that file."
)


class _Refused(Exception):
    """An opcode that is not plain. The message says which, and what it asked for."""


def load_plain(data: bytes, where: str) -> object:
    """Return the lists, dicts, tuples, texts, numbers, booleans and None of a pickle, of any protocol.

    Byte strings of Python 2 become texts (UTF-8; a bad byte becomes U+FFFD). Memory and time grow in proportion to the
    data, but values may be shared: who walks them must bound the walk.

    where: the file, for messages. Raises InputError for anything else in it, and for a broken pickle.
    """
    try:
        value: object = _PlainUnpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise InputError(
            f"{where}: a pickle that holds more than plain values ({error}); it was not run. {_REMEDY}"
        ) from error
    except Exception as error:  # a broken pickle fails in many ways: EOFError, IndexError, UnicodeDecodeError, ...
        raise InputError(
            f"{where}: a broken pickle ({type(error).__name__}: {str(error)[:120]}). Download the file again."
        ) from error
    return value


def _refusal(name: str) -> Callable[[Any], NoReturn]:
    def refuse(machine: Any) -> NoReturn:
        asked: list[Any] = []
        if name in ("GLOBAL", "INST"):  # followed by two lines: the module and the name in it
            asked = [machine.readline()[:40].strip().decode("ascii", "replace") for _ in range(2)]
        elif name == "STACK_GLOBAL":
            asked = [str(value)[:40] for value in machine.stack[-2:]]
        raise _Refused(f"opcode {name}{' for ' + '.'.join(asked) if asked else ''}")

    return refuse


def _with_plain_keys(load: Callable[[Any], None], *, is_one: bool) -> Callable[[Any], None]:
    """Return what sets items of a dict, after a look at the keys.

    A tuple is hashed anew through all that it holds, and may hold the same tuple many times over: 60 of them, one in the
    other, never come to an end.
    """

    def check(machine: Any) -> None:
        keys = machine.stack[-2:-1] if is_one else machine.stack[::2]
        for key in keys:
            if not isinstance(key, str | int | float | None):
                raise _Refused(f"a dict with a {type(key).__name__} for a key")
        load(machine)

    return check


_SET_ITEMS = {"SETITEM": True, "SETITEMS": False, "DICT": False}


class _PlainUnpickler(pickle._Unpickler):
    dispatch = {
        code: pickle._Unpickler.dispatch[code] if name in _PLAIN_OPCODES else _refusal(name)
        for code, name in _NAMES.items()
    } | {
        code: _with_plain_keys(pickle._Unpickler.dispatch[code], is_one=_SET_ITEMS[name])
        for code, name in _NAMES.items()
        if name in _SET_ITEMS
    }

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, fix_imports=False, encoding="utf-8", errors="replace")

    # Never reached: no opcode in the table asks for them. They stay shut should the machine change.
    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise _Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise _Refused("it asks for an object kept elsewhere")
