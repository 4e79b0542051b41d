"""Whether HEAD is to be believed: signatures, pinned key sets, their chain (SPEC 7.5). Reads key sets through a function.

`cryptography` is loaded where a signature is verified, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from puller.errors import Distrust, Invalid, NotFound, Untrusted, UsageError
from puller.wire.head import FORMAT, HEAD, MAX_HEAD, Head, key_set_path
from puller.wire.keyset import MOST_SETS, KeySet, parse_key_set
from puller.wire.note import ED25519, PRIVATE, Key, Note, is_private, parse_key, split_note

LONGEST_LAG = 3600
"""Seconds for which a host may serve an older HEAD than one that was seen, at least, before it is told."""
GetFile = Callable[[str], bytes]
"""Gives the bytes of a key set's file by its path. Raises NotFound for proven absence."""


class Pins(msgspec.Struct, frozen=True):
    """What a copy remembers of whom it trusts, stored with its state.

    `key_set` are the bytes of the newest key set that was followed (empty: the dataset was not signed). `given` are the
    keys from outside (`--trust`) that this goes back to; there are none where the first key met was pinned.
    """

    key_set: bytes = b""
    given: list[str] = []

    @property
    def number(self) -> int:
        """The key set's number; 0 if none is pinned."""
        return parse_key_set(self.key_set)[0].number if self.key_set else 0


@dataclass(frozen=True)
class Signed:
    """A key set with its note and its bytes."""

    keys: KeySet
    note: Note
    data: bytes


def parse_given(words: Iterable[str]) -> list[Key]:
    """The public keys that `words` name: each is a key as text, or the path of a file with one key a line.

    Raises UsageError.
    """
    found: list[Key] = []
    for word in words:
        if is_private(word):
            raise UsageError("this is a private key, or a secret; give the public key (`publisher key show` prints it)")
        try:
            found.append(parse_key(word.strip()))
        except Invalid as error:
            if not os.path.isfile(word):
                raise UsageError(f"{error}; and there is no such file") from error
            found += _keys_in(word)
    return found


def _keys_in(path: str) -> list[Key]:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if any(text.startswith(PRIVATE) for text in texts):
        raise UsageError(f"{path} holds a private key; give pullers the public one (`publisher key show` prints it)")
    try:
        keys = list(map(parse_key, texts))
    except Invalid as error:
        raise UsageError(f"{path}: {error}") from error
    if not keys:
        raise UsageError(f"{path} holds no public key")
    return keys


def signers(note: Note, keys: Sequence[Key], what: str) -> list[Key]:
    """Those of `keys` that signed a note. Raises Untrusted if a line that names one of them does not verify."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = {(key.name, key.hash): key for key in keys if key.data[0] == ED25519}
    found: dict[Key, None] = {}
    for name, digits, signature in note.signatures:
        key = known.get((name, digits))
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.data[1:]).verify(signature, note.text.encode())
        except (InvalidSignature, ValueError) as error:
            raise Untrusted(
                Distrust.BAD_SIGNATURE, f"{what} has a signature by the key {name}+{key.id} that does not verify"
            ) from error
        found[key] = None
    return list(found)


def check_head(head: Head, data: bytes, keys: KeySet) -> Key:
    """The key of the set by which HEAD is signed, which names that set. Raises Untrusted if there is none."""
    if head.name != keys.name:
        raise Untrusted(Distrust.OTHER_DATASET, f"the key set is that of {keys.name!r}, HEAD is that of {head.name!r}")
    note = split_note(data, FORMAT, HEAD, MAX_HEAD)
    if not note.signatures:
        raise Untrusted(Distrust.UNSIGNED, f"HEAD of {head.name!r} names key set {head.trust}, but has no signature")
    found = signers(note, keys.keys, HEAD)
    if not found:
        raise Untrusted(
            Distrust.UNKNOWN_KEY,
            f"HEAD is not signed by a key of key set {keys.number}, which is trusted "
            f"({', '.join(f'{key.name}+{key.id}' for key in keys.keys)})",
        )
    if head.epoch != keys.epoch:
        raise Untrusted(
            Distrust.EPOCH, f"HEAD is of epoch {head.epoch}, but key set {keys.number} is for epoch {keys.epoch}"
        )
    return found[0]


def read_key_set(get: GetFile, number: int, name: str) -> Signed:
    """The key set with a number, signed by enough of its own roots. Raises Untrusted, Unsupported or FetchError."""
    path = key_set_path(number)
    try:
        data = get(path)
    except NotFound as error:
        raise Untrusted(
            Distrust.KEY_SET_SKIPPED, f"{path} is not on the host, but HEAD, or a key set, stands on it ({error})"
        ) from error
    signed = load(data, path)
    if signed.keys.name != name:
        raise Untrusted(
            Distrust.OTHER_DATASET, f"{path} is a key set of the dataset {signed.keys.name!r}, not of {name!r}"
        )
    if signed.keys.number != number:
        raise Untrusted(Distrust.KEY_SET_SKIPPED, f"{path} holds key set {signed.keys.number}")
    return signed


def load(data: bytes, path: str) -> Signed:
    """A key set from its bytes, signed by enough of its own roots. Raises Untrusted, or Unsupported."""
    try:
        keys, note = parse_key_set(data)
    except Invalid as error:
        if type(error) is not Invalid:
            raise
        raise Untrusted(Distrust.KEY_SET_FORGED, f"{path}: {error}") from error
    signed = Signed(keys, note, data)
    _check_threshold(signed, keys)
    return signed


def _check_threshold(signed: Signed, by: KeySet) -> None:
    path = key_set_path(signed.keys.number)
    try:
        found = len(signers(signed.note, by.roots, path))
    except Untrusted as error:
        raise Untrusted(Distrust.KEY_SET_FORGED, str(error)) from error
    if found < by.threshold:
        raise Untrusted(
            Distrust.KEY_SET_FORGED,
            f"{path} is signed by {found} of the roots of key set {by.number}, and {by.threshold} must",
        )


def check_step(before: Signed, after: Signed) -> None:
    """Raise Untrusted unless `after` may follow `before`, which is trusted; `load` checked each by itself."""
    path = key_set_path(after.keys.number)
    if after.keys.number != before.keys.number + 1:
        raise Untrusted(Distrust.KEY_SET_SKIPPED, f"{path} does not follow key set {before.keys.number}")
    if after.keys.name != before.keys.name:
        raise Untrusted(Distrust.OTHER_DATASET, f"{path} is of the dataset {after.keys.name!r}")
    if after.keys.previous != hashlib.sha256(before.data).digest():
        raise Untrusted(Distrust.KEY_SET_FORGED, f"{path} follows another key set {before.keys.number}")
    if after.keys.epoch < before.keys.epoch:
        raise Untrusted(Distrust.EPOCH, f"{path} goes back from epoch {before.keys.epoch} to {after.keys.epoch}")
    _check_threshold(after, before.keys)


class Keeper:
    """Decides, from what is pinned and the keys given from outside, which key set a HEAD is to be verified by."""

    def __init__(self, get: GetFile, pins: Pins | None, given: Sequence[Key]) -> None:
        """`pins`: what the copy remembers; None at first contact, or to begin anew. `get` reads key sets."""
        self._get = get
        self._pins = pins
        self._given = list(given)

    def accept(self, head: Head, data: bytes) -> Pins:
        """Verify HEAD; return what to pin from now on. Raises Untrusted, Unsupported, or FetchError."""
        pins = self._pins or Pins()
        if head.trust == 0:
            if pins.key_set or self._given:
                raise Untrusted(
                    Distrust.UNSIGNED,
                    f"HEAD of {head.name!r} is not signed, but {'it was before' if pins.key_set else 'a key to trust was given'}",
                )
            return pins
        if not pins.key_set:
            newest, proven = self._meet(head)
            pins = Pins(newest.data, proven)
        else:
            newest = self._follow(load(pins.key_set, "the pinned key set"), head)
            pins = msgspec.structs.replace(self.proven(pins), key_set=newest.data)
        check_head(head, data, newest.keys)
        return pins

    def proven(self, pins: Pins) -> Pins:
        """Check that a key that was given is one that the pinned set goes back to. Raises Untrusted."""
        if not self._given or {str(key) for key in self._given} & set(pins.given):
            return pins
        _, proven = self._back(load(pins.key_set, "the pinned key set"))
        return msgspec.structs.replace(pins, given=[*pins.given, *proven])

    def archived(self, head: Head, data: bytes, pins: Pins) -> None:
        """Verify a superseded HEAD by the key set it names, found back from the pinned one. Raises Untrusted."""
        if not pins.key_set:
            if head.trust:
                raise Untrusted(Distrust.UNKNOWN_KEY, "a superseded HEAD is signed, though the newest one is not")
            return
        if head.trust == 0:
            raise Untrusted(Distrust.UNSIGNED, f"version {head.version} is not signed; signing began after it")
        found = load(pins.key_set, "the pinned key set")
        if head.trust > found.keys.number:
            raise Untrusted(Distrust.KEY_SET_FORGED, f"version {head.version} names a key set after the newest one")
        for _ in range(self._steps(found.keys.number - head.trust)):
            found = self._before(found)
        check_head(head, data, found.keys)

    def _follow(self, pinned: Signed, head: Head) -> Signed:
        """The set that HEAD names, by way of all between it and the pinned one."""
        if head.trust < pinned.keys.number:
            raise Untrusted(
                Distrust.KEY_SET_ROLLBACK,
                f"HEAD names key set {head.trust}, but key set {pinned.keys.number} was followed before",
            )
        for number in range(
            pinned.keys.number + 1, pinned.keys.number + 1 + self._steps(head.trust - pinned.keys.number)
        ):
            after = read_key_set(self._get, number, head.name)
            check_step(pinned, after)
            pinned = after
        return pinned

    def _meet(self, head: Head) -> tuple[Signed, list[str]]:
        """The set that HEAD names, at first contact, and which of the given keys it goes back to."""
        newest = read_key_set(self._get, head.trust, head.name)
        return self._back(newest) if self._given else (newest, [])

    def _back(self, newest: Signed) -> tuple[Signed, list[str]]:
        """Go back from `newest` to a set that one of the given keys signed as its root; these keys. Raises Untrusted."""
        found = newest
        while True:
            roots = [key for key in self._given if key in found.keys.roots]
            proven = signers(found.note, roots, key_set_path(found.keys.number)) if roots else []
            if proven:
                return newest, list(map(str, proven))
            if found.keys.number == 1 or newest.keys.number - found.keys.number >= MOST_SETS:
                raise self._unknown(newest)
            found = self._before(found)

    def _before(self, after: Signed) -> Signed:
        before = read_key_set(self._get, after.keys.number - 1, after.keys.name)
        check_step(before, after)
        return before

    def _steps(self, steps: int) -> int:
        if steps > MOST_SETS:
            raise Untrusted(
                Distrust.KEY_SET_SKIPPED,
                f"HEAD is {steps} key sets from the one that is pinned; {MOST_SETS} are followed",
            )
        return steps

    def _unknown(self, newest: Signed) -> Untrusted:
        roots = ", ".join(map(str, newest.keys.roots))
        if any(key in newest.keys.keys for key in self._given):
            return Untrusted(
                Distrust.UNKNOWN_KEY,
                f"the key that was given signs HEADs of {newest.keys.name!r}, but is no root of its key sets: give the "
                f"root's, {roots}",
            )
        return Untrusted(
            Distrust.UNKNOWN_KEY,
            f"no key set of {newest.keys.name!r} is signed by the key that was given "
            f"({', '.join(f'{key.name}+{key.id}' for key in self._given)}); the host says that its root is {roots}",
        )


class Staleness(StrEnum):
    """Why what is held may be old, though nothing is wrong with it."""

    EXPIRED = "expired"
    STALE = "stale"
    OLDER_HEAD = "older-head"

    @property
    def because(self) -> str:
        """What it means, for people."""
        return _BECAUSE[self]


_BECAUSE = {
    Staleness.EXPIRED: "the newest HEAD that the host gave is expired; newer ones may be held back",
    Staleness.STALE: "the newest HEAD that the host gave is older than --max-staleness",
    Staleness.OLDER_HEAD: "the host has served an older HEAD than one seen before for too long",
}


def staleness(
    now: int, time: int, *, expires: int | None, behind: int | None, interval: int, most: int | None
) -> tuple[Staleness, int] | None:
    """Why the newest HEAD that was seen is too old, and since when; None if it is not. All in Unix seconds.

    `time` is its own, `behind` is since when the host serves older ones, `most` how old it may be. The local clock is
    trusted for nothing but this.
    """
    if behind is not None and now - behind > max(LONGEST_LAG, 10 * interval):
        return Staleness.OLDER_HEAD, behind
    if expires is not None and now > expires:
        return Staleness.EXPIRED, expires
    return (Staleness.STALE, time + most) if most is not None and now - time > most else None


def identity(head: Head) -> str:
    """What HEADs of one epoch and version must have in common, so that a fork shows (SPEC 7.4)."""
    return f"{head.publish_id} {head.checksum:032x} {head.records} {head.snapshot_version} {head.snapshot.ref.sha256.hex()}"
