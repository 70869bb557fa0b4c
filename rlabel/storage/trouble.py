"""What can go wrong with a store: which errors pass by themselves, how long they are waited for, what the user is told."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from rlabel.errors import StorageError

# A network may be gone for a while; of a local disk what does not pass at once does not pass.
REMOTE_PATIENCE_S = 120.0
_ATTEMPTS = 3
_TELL_AFTER_S = 10.0
_MAX_WAIT_S = 5.0

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Linux's number for what s3fs makes of a redirect; other systems lack it.
_MOVED = getattr(errno, "EREMCHG", errno.ENOENT)
_NEVER_PASSES = FULL | frozenset(
    {errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EPERM, errno.EACCES}
    | {errno.EXDEV, errno.EINVAL, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMSGSIZE, _MOVED}
)
# Answers of S3 that s3fs takes for a wrong call (EINVAL): bytes that were damaged or lost on their way to the server.
_DAMAGED_ON_THE_WAY = frozenset(
    {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
# What drivers raise, beside OSError, when the server could not be reached or broke off: botocore, aiohttp, urllib3,
# requests, azure-core, gcsfs. Told by their names, so that no driver is imported for it.
_CONNECTION_ERRORS = frozenset(
    {"HTTPClientError", "ConnectionError", "ConnectionClosedError", "ResponseParserError", "IncompleteReadError"}
    | {"ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "IncompleteRead", "ProtocolError"}
    | {"ChunkedEncodingError", "ServiceRequestError", "ServiceResponseError", "HttpError"}
)
_STAYS = "what is committed stays"
_FREE_SOME = f"Free some space and run the same command again: {_STAYS}."
_T = TypeVar("_T")


class MissingFile(StorageError, FileNotFoundError):
    """The file is not there. Caught where absence means something; else it ends the command like any StorageError."""


class PathRefused(StorageError):
    """The path would leave the store's folder, or cannot name a file in it. For an image, that is one bad item."""


class StoreDown(StorageError):
    """The store as a whole cannot be used now: out of reach, or full. It says nothing of the item at hand, so a run stops and goes on later."""


class DriverTrouble(OSError):
    """What a driver raised that may be a wrong setting as well as bad luck: it is tried a few times only."""


def retrying(patience_s: float | None, where: str) -> Retrying:
    """Return the retries of one operation. patience_s: no attempt begins so long after the first one; None: three attempts.

    Between attempts lies a random time that doubles on average, 5 s at most. Who waits for long is told so once, on stderr.
    """
    told = False

    def is_over(state: RetryCallState) -> bool:
        is_odd = state.outcome is not None and isinstance(state.outcome.exception(), DriverTrouble)
        if patience_s is None or is_odd:
            return state.attempt_number >= _ATTEMPTS
        return (state.seconds_since_start or 0.0) >= patience_s

    def tell(state: RetryCallState) -> None:
        nonlocal told
        if told or state.outcome is None or (state.seconds_since_start or 0.0) < _TELL_AFTER_S:
            return
        told = True
        cause = f"{state.outcome.exception()}"[:300]
        print(
            f"rlabel: {where}: no luck so far ({cause}); trying on for {patience_s or 0:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    return Retrying(
        stop=is_over,
        wait=wait_random_exponential(multiplier=0.1, max=_MAX_WAIT_S),
        retry=retry_if_exception(may_pass),
        before_sleep=tell,
        reraise=True,
    )


def may_pass(error: BaseException) -> bool:
    """Return whether the same call may work a moment later."""
    if isinstance(error, FileExistsError | FileNotFoundError | PermissionError):
        return False
    if not isinstance(error, OSError):
        return False
    return error.errno not in _NEVER_PASSES or service_code(error) in _DAMAGED_ON_THE_WAY


def service_code(error: BaseException) -> str:
    """Return what an S3 server called its error, "" where it is none of S3."""
    response = getattr(error.__cause__, "response", None)
    about = response.get("Error") if isinstance(response, dict) else None
    return str(about.get("Code", "")) if isinstance(about, dict) else ""


def driver(function: Callable[[], _T]) -> _T:
    """Call a filesystem driver; errors of its own kind (botocore's, aiohttp's) come out as OSError."""
    try:
        return function()
    except StorageError:
        raise
    except PermissionError as error:
        if error.errno is not None:
            raise
        raise PermissionError(errno.EACCES, str(error)) from error
    except OSError:
        raise
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        kind = DriverTrouble if names.isdisjoint(_CONNECTION_ERRORS) else OSError
        raise kind(f"{type(error).__name__}: {error}") from error


def trouble(error: OSError, where: str, verb: str, is_local: bool) -> StorageError:
    """Return the error that tells a user what could not be done where, why, and what to do. verb: as in "cannot write it"."""
    if isinstance(error, FileNotFoundError):
        return MissingFile(f"{where}: there is no such file. Check the path.")
    if error.errno == errno.ENOSPC:
        return StoreDown(f"{where}: cannot {verb} it: disk full ({error}). {_FREE_SOME}")
    if error.errno == errno.EDQUOT:
        return StoreDown(f"{where}: cannot {verb} it: the disk quota is used up ({error}). {_FREE_SOME}")
    reason = str(error) or type(error).__name__
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        check = "the permissions" if is_local else "the permissions and the credentials"
        return StorageError(f"{where}: cannot {verb} it ({reason}). Check {check}, or choose another place.")
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        found = "a folder where a file" if isinstance(error, IsADirectoryError) else "a file where a folder"
        return StorageError(f"{where}: cannot {verb} it: there is {found} is expected ({reason}). Give another path.")
    check = "the path" if is_local else "the URL, the credentials and the connection"
    # A disk that cannot read one file may read the next one.
    is_down = not is_local and may_pass(error) and not isinstance(error, DriverTrouble)
    kind = StoreDown if is_down else StorageError
    return kind(f"{where}: cannot {verb} it ({reason}). Check {check}, then run the same command again: {_STAYS}.")
