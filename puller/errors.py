"""Every error a user can meet: one tree, each class with its exit code.

A message says what happened, what was kept, and what to do next.
"""

from __future__ import annotations

from enum import StrEnum


class HeadwaterError(Exception):
    """Base of all errors raised on purpose. `exit_code` is the command's exit status."""

    exit_code = 1


class UsageError(HeadwaterError):
    """The command, or a combination of its arguments, makes no sense."""

    exit_code = 2


class Undecided(UsageError):
    """What is to be made at a path depends on the dataset's kind, which is not known yet."""


class SecretError(UsageError):
    """The secret of an encrypted dataset is missing, damaged or another one's, or was given for one that is not encrypted."""


class Refused(HeadwaterError):
    """Going on would lose or overwrite something; a flag says it is meant."""

    exit_code = 3


class NotOurs(Refused):
    """The target holds data that headwater did not put there."""


class LocalEdits(Refused):
    """The target was changed by somebody else since it was pulled.

    `names` lists what differs, as far as the target can tell.
    """

    def __init__(self, message: str, names: list[str] | None = None) -> None:
        super().__init__(message)
        self.names = names or []


class Shrunk(Refused):
    """The source lost more records than is plausible."""


class Rejected(Refused):
    """A validator did not let a new version pass."""


class NoKey(Refused):
    """The private key that would have to sign is not here, or is not one that the dataset's key set names."""


class SourceError(HeadwaterError):
    """The source cannot be read, or holds something that cannot be published."""


class TargetError(HeadwaterError):
    """The target cannot be read or written."""


class FetchError(HeadwaterError):
    """A file could not be had from the host.

    `diff` is the SHA-256 of the root of the diff that needs the file, where it is known.
    """

    diff: bytes | None = None


class NotFound(FetchError):
    """The host says that the file does not exist (proven absence, never an outage)."""


class Missing(NotFound):
    """The host says that a file does not exist which the dataset names: it may come yet, or be gone."""


class Withheld(FetchError):
    """The host gives something else than the file (403, a web page); whether it is absent cannot be told.

    S3 answers 403 for what is missing to whoever may not list the bucket.
    """


class Unavailable(FetchError):
    """The host did not answer, or answered that it cannot now; worth another try.

    `retry_after` is the number of seconds the host asked to wait, if it did.
    """

    exit_code = 4

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Invalid(HeadwaterError):
    """What was read breaks the format (SPEC.md); nothing of it was used."""

    exit_code = 5


class Distrust(StrEnum):
    """Why a HEAD or a key set is not believed (SPEC 7.4, 7.5)."""

    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    BAD_SIGNATURE = "bad-signature"
    OTHER_DATASET = "other-dataset"
    KEY_SET_ROLLBACK = "key-set-rollback"
    KEY_SET_FORGED = "key-set-forged"
    KEY_SET_SKIPPED = "key-set-skipped"
    EPOCH = "epoch"
    FORK = "fork"
    EXPIRED = "expired"


class Untrusted(Invalid):
    """What the host serves is not what the trusted keys signed, or not what they may sign. `reason` names what is wrong."""

    def __init__(self, reason: Distrust, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Corrupt(Invalid):
    """A file's bytes are not what its name or its reference promises.

    `diff` is the SHA-256 of the root of the diff that needs the file, where it is known.
    """

    diff: bytes | None = None


class Unsupported(Invalid):
    """The dataset needs a feature that this release does not know."""


class ChecksumMismatch(Invalid):
    """Applying would give a state whose checksum is not the one in HEAD."""


class Stale(Invalid):
    """A patch does not fit what is held, which was edited or is of another version; a diff will do."""


class Moved(HeadwaterError):
    """Another puller changed the target between our reading of its state and our locking it."""


class SchemaChanged(HeadwaterError):
    """A target cannot follow a change of the schema row by row; the whole state is needed."""


class Conflict(HeadwaterError):
    """Somebody else published between our reading of HEAD and our writing of it."""
