"""What targets that keep a dataset's tables in a database have in common: values of keys, bookkeeping, local edits refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from puller.errors import Invalid, LocalEdits, TargetError
from puller.targets.base import State
from puller.wire.keys import decode_key, encode_element
from puller.wire.rows import Table

_CLASSES = {"int64": int, "float64": float, "text": str, "blob": bytes, "bool": bool}


def fits(table: Table, values: Sequence[Any]) -> bool:
    """Whether values are of the types of the key's first columns, and not nil: databases compare them as keys are."""
    types = [table.columns[n].type for n in table.key]
    return all(type(value) is _CLASSES[type_] for value, type_ in zip(values, types, strict=False))


def first_values(table: Table, bound: bytes) -> Sequence[Any]:
    """The values of the primary key with which a bound of a range of keys begins, as far as it has any."""
    try:
        return decode_key(bound)[1][: len(table.key)] if bound > encode_element(table.name) else ()
    except Invalid:
        return ()


def decode_state(data: bytes, where: str, elsewhere: str) -> State:
    """A state from the bookkeeping of a target. Raises TargetError, which says to pull `elsewhere`."""
    try:
        return msgspec.msgpack.decode(data, type=State)
    except (msgspec.DecodeError, TypeError) as error:
        raise TargetError(
            f"the bookkeeping of {where} is damaged ({error}); what was there was kept. Pull into {elsewhere}"
        ) from error


def unreadable(table: str, error: Exception) -> LocalEdits:
    """What to raise for a row that no dataset can hold."""
    return LocalEdits(
        f"table {table!r} holds a value that no dataset can hold: {error}; nothing was written. Mend it, or pull with "
        "--overwrite",
        [table],
    )


def check_edits(
    where: str,
    state: State,
    missing: list[str],
    made: Iterable[str],
    extra: Callable[[], list[str]],
    checksum: Callable[[], int],
) -> None:
    """Raise LocalEdits if replacing everything would lose something.

    `made` are the tables as they were made, `missing` what of them is gone, `extra` gives columns that were added, and
    `checksum` that of what the tables hold. All of them gone is no edit: nothing is lost.
    """
    if missing and missing != list(made):
        raise LocalEdits(
            f"tables or columns of the dataset are gone from {where} ({', '.join(missing[:5])}); nothing was written. "
            "To write all of them again: run `puller pull --overwrite`",
            missing,
        )
    if missing:
        return
    if added := extra():
        raise LocalEdits(
            f"{where} has columns that headwater did not make ({', '.join(added[:5])}), and their tables must be written "
            "anew; nothing was written. Move them away, or run `puller pull --overwrite`",
            added,
        )
    if f"{checksum():032x}" != state.checksum:
        raise LocalEdits(
            f"rows of {where} were changed since they were pulled, and its tables must be written anew; nothing was "
            "written. Move your changes away, or run `puller pull --overwrite`"
        )
