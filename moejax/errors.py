"""What a user can do wrong or a machine can do to them: one class per exit code.

Every message says what is, what was expected, and what to change. The front doors print the message
alone (the trace only with --debug) and exit with `exit_code`.
"""


class MoejaxError(Exception):
    """Base of every error that is addressed to the user; 70 means a bug in moejax itself."""

    exit_code = 70


class UsageError(MoejaxError, ValueError):
    """A flag, a config value or a combination of them cannot work."""

    exit_code = 2


class DataError(MoejaxError):
    """The training or evaluation data is missing, damaged, or not the data the run began with."""

    exit_code = 65


class CheckpointError(MoejaxError):
    """A checkpoint is damaged, or belongs to another model."""

    exit_code = 66


class StorageError(MoejaxError):
    """The disk is full or failed."""

    exit_code = 74


class RetryError(MoejaxError):
    """Nothing is wrong with the run: start the same command again (signal, lost peer, held lock)."""

    exit_code = 75


class NonFiniteError(MoejaxError):
    """Too many updates in a row were not finite."""

    exit_code = 76


class HangError(MoejaxError):
    """No step finished within the watchdog's time."""

    exit_code = 77
