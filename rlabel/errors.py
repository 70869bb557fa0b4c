"""The errors a caller of rlabel may catch. Bad items are not here: they become `Failure` records.

RlabelError
 +- UsageError      the call itself is wrong (settings, flags, an existing run with other settings); exit code 2
 +- InputError      a file the user named cannot be used (corpus, vocabulary, model, checkpoint); exit code 1
 +- StorageError    a store failed, or cannot keep the promises a run needs; exit code 1
 +- RunError        a run stopped, or its directory is damaged; what was committed stays; exit code 1
 +- TooManyFailures a run ended with a larger share of failures than allowed; exit code 3

Every message says what, where, expected, got, and what to do next.
"""


class RlabelError(Exception):
    """Base of all errors that rlabel raises on purpose."""

    exit_code = 1


class UsageError(RlabelError):
    exit_code = 2


class InputError(RlabelError):
    pass


class StorageError(RlabelError):
    pass


class RunError(RlabelError):
    pass


class TooManyFailures(RlabelError):
    exit_code = 3
