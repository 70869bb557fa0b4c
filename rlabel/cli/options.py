"""Click options made from a settings record, and the way errors end a command."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlabel.cli.plain_streams import plain_streams
from rlabel.errors import RlabelError
from rlabel.settings_files import fields_in_order

_F = TypeVar("_F", bound=Callable[..., Any])
INTERRUPTED = 130


def settings_options(kind: type[BaseModel], flag_values: Mapping[str, str] | None = None) -> Callable[[_F], _F]:
    """Return a decorator that adds one option for each field of the record, all None by default so that --config can speak.

    flag_values: of the options that may be given without a value, what that means.
    """

    def decorate(function: _F) -> _F:
        hints = typing.get_type_hints(kind)
        for name in reversed(fields_in_order(kind)):
            function = _option(name, kind.model_fields[name], hints[name], (flag_values or {}).get(name))(function)
        return click.option("--config", type=click.Path(dir_okay=False), help="YAML file of settings; flags win.")(
            function
        )

    return decorate


def _option(name: str, info: FieldInfo, hint: Any, flag_value: str | None) -> Callable[[_F], _F]:
    flag = f"--{name.replace('_', '-')}"
    required = info.default is PydanticUndefined
    default = "" if required or info.default is None else f" [default: {info.default}]"
    text = f"{(info.description or name.replace('_', ' ')).strip()}{' [required]' if required else default}"
    plain = _without_none(hint)
    if flag_value is not None:
        return click.option(flag, name, is_flag=False, flag_value=flag_value, default=None, metavar="[TEXT]", help=text)
    if plain is bool:
        # Both ways, so that a flag can win over --config whatever that says.
        opposite = f"--{flag.removeprefix('--no-')}" if name.startswith("no_") else f"--no-{flag.removeprefix('--')}"
        return click.option(f"{flag}/{opposite}", name, default=None, help=text)
    if get_origin(plain) is tuple:
        # Not given must stay None, so that --config can speak.
        return click.option(
            flag, name, type=get_args(plain)[0], multiple=True, callback=lambda _context, _option, got: got or None,
            help=f"{text.removesuffix(default)}. May be repeated.",
        )  # fmt: skip
    kind: Any = plain
    if get_origin(plain) is Literal:
        kind = click.Choice([str(choice) for choice in get_args(plain)])
    return click.option(flag, name, type=kind, default=None, help=text)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def ends_cleanly(function: _F) -> _F:
    """Turn rlabel's errors into one message on stderr and their exit code; Ctrl-C and SIGTERM into a sentence and 130."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        share_cores()
        with plain_streams():
            try:
                return function(*args, **kwargs)
            except RlabelError as error:
                print(f"rlabel: {error}", file=sys.stderr, flush=True)
                sys.exit(error.exit_code)
            except (KeyboardInterrupt, Stopped):
                print(
                    "rlabel: stopped; what is done stays. Run the same command again to go on.",
                    file=sys.stderr,
                    flush=True,
                )
                sys.exit(INTERRUPTED)

    return wrapper  # type: ignore[return-value]


# Turns of libgomp's waiting loop, some half a millisecond: longer than from one operation of a forward pass to the next.
_SPIN_TURNS = 10_000


def share_cores() -> None:
    """Let idle OpenMP threads sleep after half a millisecond, here and in every process that this one starts. Call it before torch is imported.

    "Active" is what libgomp needs to wait at all (a tenth of that) where the threads of several pools are more than the cores, as in an actor whose
    model, preparation and snapping run on threads of their own. The count bounds it; for Intel's and LLVM's runtimes the block time does (milliseconds).
    A 135M prefill in bfloat16 on 2 cores, torch 2.13 (libgomp) takes 0.95 s so, 1.7 where threads sleep at once, 0.98 where they spin long; with three
    other busy processes on these cores 4.1, 2.8 and 10 s. What the environment says already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_TURNS))
        os.environ.setdefault("KMP_BLOCKTIME", "1")


class Stopped(KeyboardInterrupt):
    """SIGTERM arrived. Not an Exception: nothing that survives a bad item may swallow it. As Ctrl-C, which alone Ray lets through its waits."""


def stop_on_sigterm() -> None:
    """Raise Stopped at SIGTERM. Call it at the start; `ray_session` keeps it through ray.init, which installs a handler of its own."""

    def stop(_signal: int, _frame: object) -> NoReturn:
        raise Stopped

    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        signal.signal(signal.SIGTERM, stop)


def print_json(document: object) -> None:
    """Print one JSON object on stdout: the last, machine-readable line of a command."""
    print(json.dumps(document, ensure_ascii=False, sort_keys=True, allow_nan=False), flush=True)
