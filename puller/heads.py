"""HEAD as hosts give it: the newest, superseded ones, and the key sets by which both are verified."""

from __future__ import annotations

from collections.abc import Callable

from puller.errors import Corrupt, Distrust, Invalid, NotFound, Untrusted, Withheld
from puller.fetch import Answer, Fetcher, Patience, shown
from puller.secret import unlock
from puller.trust import GetFile, Keeper, Pins
from puller.wire.head import MAX_HEAD, Head, archive_path, parse_head
from puller.wire.keyset import MAX_KEY_SET, check_key_set

READ_AGAIN = 3600
"""Seconds after which HEAD is asked for unconditionally: some hosts' tags miss a change."""
Found = tuple[Head | None, Answer]
"""A HEAD that a host gave (None: not modified since it came with the tag that was sent), and the host's answer."""


def read_heads(address: str, fetcher: Fetcher, etag: str | None) -> list[Found]:
    """HEAD; several where the dataset has mirrors that differ, the newest first. Raises Invalid, FetchError."""
    try:
        answer = fetcher.fetch_head(etag)
    except (NotFound, Withheld) as error:
        what = "there is no dataset at" if isinstance(error, NotFound) else "no dataset can be read at"
        raise type(error)(f"{what} {shown(address)} ({error}); check the address") from error
    found: list[Found] = []
    first: Invalid | None = None
    for one in (answer, *answer.others):
        try:
            found.append((None if one.data is None else parse_head(one.data), one))
        except Invalid as error:
            first = first or error
    if not found and first is not None:
        raise type(first)(f"{shown(address)}: {first}") from first
    return found


def key_sets(fetcher: Fetcher, patience: Callable[[], Patience] = Patience) -> GetFile:
    """Gets key sets: one that is missing is waited for, and one that is damaged is asked for again, or elsewhere."""

    def get(path: str) -> bytes:
        def ask() -> bytes:
            return fetcher.fetch(path, MAX_KEY_SET, check_key_set)

        try:
            return ask() if fetcher.is_local else patience().until_there(ask)
        except Corrupt as error:
            raise Untrusted(Distrust.KEY_SET_FORGED, f"{path}: {error}") from error

    return get


def superseded(
    fetcher: Fetcher, newest: Head, version: int, keeper: Keeper, pins: Pins, secret: str | None = None
) -> Head:
    """The HEAD of an earlier version of HEAD's epoch, opened, and verified from what `newest` is trusted by.

    Raises NotFound where the host keeps it no more, Invalid for another than that.
    """
    path = archive_path(newest.epoch, version)
    try:
        data = fetcher.fetch(path, MAX_HEAD)
        wanted = parse_head(data)
    except (NotFound, Withheld) as error:
        raise NotFound(f"version {version} is not kept on the host any more ({error})") from error
    wanted, _ = unlock(wanted, secret)
    found = (wanted.name, wanted.kind, wanted.encryption, wanted.epoch, wanted.version)
    if found != (newest.name, newest.kind, newest.encryption, newest.epoch, version):
        raise Invalid(f"{path} on the host is not the HEAD of version {version}; nothing was changed")
    keeper.archived(wanted, data, pins)
    return wanted
