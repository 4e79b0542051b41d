"""HEAD written anew for what is published already: refreshed, signed by other keys, or as the first of a new epoch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from publisher.build import make_pool
from publisher.commit import check_in_time, damaged, expiry, lifetime, place
from publisher.keys import Keyring, SigningKey
from publisher.published import Published, read_head
from publisher.signing import Signing, begin, following, newest_set, write_set
from publisher.snapshots import carry
from puller.errors import ChecksumMismatch, Conflict, Corrupt, NoKey, NotFound, UsageError
from puller.secret import unlock
from puller.stores.base import Store
from puller.trust import Signed, check_head, read_key_set
from puller.wire.cipher import Cipher, sealed
from puller.wire.codec import CHUNKS
from puller.wire.head import Head, archive_path, format_head
from puller.wire.keyset import KeySet
from puller.wire.note import Key

ATTEMPTS = 5
DAY = 86400
Now = Callable[[], float]


@dataclass(frozen=True)
class Wanted:
    """How the key set is to change.

    `new_key`: the key that signs from now on, in the place of ours (None: one is made). `roots`: private keys of
    roots; if one of them is no root yet, they are the new roots. Else the roots stay; where the signing key was the root,
    the new one is. `old_roots`:
    private keys that only sign. `threshold`: how many roots must sign the next set (None: it stays).
    """

    new_key: SigningKey | None = None
    roots: Sequence[SigningKey] = ()
    old_roots: Sequence[SigningKey] = ()
    threshold: int | None = None

    @property
    def signers(self) -> list[SigningKey]:
        """All private keys that were given."""
        return [*self.roots, *self.old_roots, *([] if self.new_key is None else [self.new_key])]


@dataclass
class Renewed:
    """The HEAD that was written, and how it is signed; `made` are the files of private keys that are new."""

    head: Head
    signing: Signing | None
    made: list[str] = field(default_factory=list)


def refresh(
    store: Store, keyring: Keyring, *, expires_in: int | None = None, forever: bool = False, now: Now = time.time
) -> Renewed:
    """Write HEAD again, with a later time, good for `expires_in` seconds (None: as long as before; `forever`: for ever).

    Raises NotFound without a dataset, and NoKey where the private key is not at hand.
    """

    def make(was: Published) -> Renewed:
        seconds = None if forever else expires_in or lifetime(was.head)
        head = _later(was.head, now)
        return _swap(was, msgspec.structs.replace(head, expires=expiry(head.time, seconds)), was.signing)

    return _with_head(store, keyring, make, lambda head: (head, None))


def rewrite(was: Published, head: Head, now: Now = time.time) -> Head:
    """Write HEAD again as `head`, an opened one of the same version, with a later time; return it.

    Raises NoKey or Untrusted where it cannot be signed, and Conflict.
    """
    return _swap(was, sealed(_later(head, now), was.cipher), was.signing).head


def rotate(
    store: Store, keyring: Keyring, wanted: Wanted, *, secret: str | None = None, now: Now = time.time
) -> Renewed:
    """Put another signing key, and perhaps other roots, in the place of those there are; HEAD's version stays.

    A dataset that is not signed is from then on. What a killed command left half done is finished instead, where it has all
    that is wanted.
    Raises NoKey where a key that must sign is not at hand.
    """

    def make(was: Published) -> Renewed:
        if was.head.trust == 0:
            return _begin(was, keyring, wanted, now)
        before, tip = _set_of(was), newest_set(store, was.head)
        new = _Keys(keyring, wanted)
        if (tip.keys.keys, tip.keys.roots) == (before.keys.keys, before.keys.roots) or not new.is_met(tip.keys):
            ours = keyring.find(tip.keys.keys)
            old = tip.keys.keys[0] if ours is None else ours.public
            key = new.make(was.head.name)
            keys = [key if other == old else other for other in tip.keys.keys]
            tip = _follow(store, tip, new, keys=keys, roots=new.roots(tip, keys), now=now)
        return _renew(was, tip, new, now)

    return _with_head(store, keyring, make, lambda head: unlock(head, secret))


def revoke(
    store: Store, keyring: Keyring, key_id: str, wanted: Wanted, *, secret: str | None = None, now: Now = time.time
) -> Renewed:
    """Take a key, given by its id or as a whole, out of the key set, and begin a new epoch, so that nothing it signed counts.

    Where no other key is left, one is made. Raises UsageError for a key that the set does not name, and NoKey.
    """

    def is_it(key: Key) -> bool:
        return key_id in (key.id, f"{key.name}+{key.id}", str(key))

    def make(was: Published) -> Renewed:
        if was.head.trust == 0:
            raise UsageError(f"{store.where} is not signed: there is no key to revoke")
        before, tip = _set_of(was), newest_set(store, was.head)
        now_named = [*tip.keys.keys, *tip.keys.roots]
        named = [*before.keys.keys, *before.keys.roots, *now_named]
        if not any(map(is_it, named)):
            names = ", ".join(dict.fromkeys(f"{key.name}+{key.id}" for key in named))
            raise UsageError(f"the key set of {was.head.name!r} has no key {key_id}; it has {names}")
        new = _Keys(keyring, wanted)
        if tip.keys.epoch == was.head.epoch or any(map(is_it, now_named)):
            keys = [key for key in tip.keys.keys if not is_it(key)] or [new.make(was.head.name)]
            roots = [key for key in new.roots(tip, keys) if not is_it(key)] or keys
            tip = _follow(store, tip, new, keys=keys, roots=roots, now=now, epoch=tip.keys.epoch + 1)
        return _renew(was, tip, new, now)

    return _with_head(store, keyring, make, lambda head: unlock(head, secret))


def restart(
    store: Store,
    keyring: Keyring,
    *,
    epoch: int | None = None,
    wanted: Wanted,
    secret: str | None = None,
    now: Now = time.time,
) -> Renewed:
    """Begin a new epoch (None: the next) with what HEAD has: for a store that was set back to an earlier state.

    Raises UsageError for an epoch that is not higher, and NoKey.
    """

    def make(was: Published) -> Renewed:
        if epoch is not None and epoch <= was.head.epoch:
            raise UsageError(f"{store.where} is in epoch {was.head.epoch}; a new one must be higher")
        higher = epoch or was.head.epoch + 1
        if was.head.trust == 0:
            return _swap(was, _first_of(was, higher, 0, now), None)
        _set_of(was)
        tip, new = newest_set(store, was.head), _Keys(keyring, wanted)
        if tip.keys.epoch < higher:
            tip = _follow(store, tip, new, keys=tip.keys.keys, roots=tip.keys.roots, now=now, epoch=higher)
        return _renew(was, tip, new, now)

    return _with_head(store, keyring, make, lambda head: unlock(head, secret))


def current_set(store: Store) -> KeySet:
    """The key set that HEAD names, once HEAD was verified by it. Raises NotFound, UsageError where HEAD is not signed."""
    head, data, _ = read_head(store)
    if head is None:
        raise NotFound(f"there is no dataset at {store.where}")
    if head.trust == 0:
        raise UsageError(f"{store.where} is not signed; `publisher key rotate` makes a key and signs it")
    signed = read_key_set(store.get, head.trust, head.name)
    check_head(head, data, signed.keys)
    return signed.keys


def _with_head(
    store: Store,
    keyring: Keyring,
    make: Callable[[Published], Renewed],
    opened: Callable[[Head], tuple[Head, Cipher | None]],
) -> Renewed:
    """Do something with what is published; again, where somebody else published meanwhile.

    `opened` opens the HEAD of an encrypted dataset, or leaves it as it is where that is enough.
    """
    for _ in range(ATTEMPTS):
        head, data, token = read_head(store)
        if head is None:
            raise NotFound(f"there is no dataset at {store.where}")
        head, cipher = opened(head)
        with make_pool() as pool:
            try:
                return make(Published(store, pool, head, data, token, cipher, keyring))
            except Conflict:
                continue
            except Corrupt as error:
                raise damaged(store, error) from error
    raise Conflict(f"others kept publishing to {store.where}; nothing was changed. Try again")


def _begin(was: Published, keyring: Keyring, wanted: Wanted, now: Now) -> Renewed:
    """Begin to sign a dataset that was not."""
    if wanted.roots or wanted.old_roots or wanted.threshold:
        raise UsageError(f"{was.store.where} is not signed yet: rotate once without roots, then again with them")
    ring = Keyring(wanted.new_key, keyring.folder) if wanted.new_key else keyring
    signing = begin(was.store, was.head.name, ring, int(now()), was.head.epoch)
    renewed = _swap(was, msgspec.structs.replace(_later(was.head, now), trust=1), signing)
    return Renewed(renewed.head, signing, [] if signing.made is None else [signing.made])


class _Keys:
    """The private keys for one change of a key set: those given, those made for it, those at hand."""

    def __init__(self, keyring: Keyring, wanted: Wanted) -> None:
        self._keyring = keyring
        self._wanted = wanted
        self._extra = wanted.signers
        self.made: list[str] = []

    def make(self, name: str) -> Key:
        """The new signing key: the one given, or one that is made and stored."""
        if self._wanted.new_key is not None:
            return self._wanted.new_key.public
        key, path = self._keyring.make(name)
        self._extra.append(key)
        self.made.append(path)
        return key.public

    def is_met(self, keys: KeySet) -> bool:
        """Whether a key set has all that was asked for by name."""
        wanted = self._wanted
        return (
            (wanted.new_key is None or wanted.new_key.public in keys.keys)
            and {key.public for key in wanted.roots} <= set(keys.roots)
            and wanted.threshold in (None, keys.threshold)
        )

    def find(self, key: Key) -> SigningKey | None:
        """A private key, if it is at hand."""
        given = next((extra for extra in self._extra if extra.public == key), None)
        return given or self._keyring.find([key])

    def need(self, keys: Sequence[Key], what: str) -> SigningKey:
        """The private key of the first of these that is at hand. Raises NoKey."""
        return next(filter(None, map(self.find, keys)), None) or self._keyring.need(keys, what)

    def roots(self, tip: Signed, keys: list[Key]) -> list[Key]:
        """The roots of the set after `tip`, in which `keys` sign: those given, if one of them is new, or those of before.

        Where signing keys were roots, they are again.
        """
        given = list(dict.fromkeys(key.public for key in self._wanted.roots))
        if set(given) - set(tip.keys.roots):
            return given
        return [root for root in tip.keys.roots if root not in tip.keys.keys or root in keys] or keys

    def threshold(self, tip: Signed, roots: list[Key]) -> int:
        """How many of the new roots must sign the set after the next. Raises UsageError."""
        wanted = self._wanted.threshold or min(tip.keys.threshold, len(roots))
        if wanted > len(roots):
            raise UsageError(f"a threshold of {wanted} needs as many roots; there are {len(roots)}")
        return wanted

    def signing(self, tip: KeySet, after: KeySet) -> list[SigningKey]:
        """The private keys that must sign a key set after `tip`. Raises NoKey."""
        found: list[SigningKey] = []
        for keys in (tip, after):
            here = [key for root in keys.roots if (key := self.find(root)) is not None]
            if len(here) < keys.threshold:
                missing = ", ".join(f"{r.name}+{r.id}" for r in keys.roots if self.find(r) is None)
                raise NoKey(
                    f"key set {after.number} must be signed by {keys.threshold} of the roots of key set {keys.number}, and "
                    f"{len(here)} are at hand; nothing was changed. Missing: {missing}; give them with --root or --old-root"
                )
            found += here
        return found


def _set_of(was: Published) -> Signed:
    """The key set that HEAD names and is signed by. Raises Untrusted."""
    signed = read_key_set(was.store.get, was.head.trust, was.head.name)
    check_head(was.head, was.data, signed.keys)
    return signed


def _follow(
    store: Store, tip: Signed, new: _Keys, *, keys: list[Key], roots: list[Key], now: Now, epoch: int | None = None
) -> Signed:
    """Write the key set after `tip`, durably. HEAD does not name it yet; whoever runs next goes on from it."""
    after = following(
        tip,
        epoch=tip.keys.epoch if epoch is None else epoch,
        now=int(now()),
        keys=keys,
        roots=roots,
        threshold=new.threshold(tip, roots),
    )
    return write_set(store, after, new.signing(tip.keys, after))


def _renew(was: Published, tip: Signed, new: _Keys, now: Now) -> Renewed:
    """Write HEAD anew, as the key set wants it: signed by one of its keys, and in its epoch."""
    key = new.need(tip.keys.keys, f"HEAD of {was.head.name!r} in {was.store.where}")
    if tip.keys.epoch > was.head.epoch:
        head = _first_of(was, tip.keys.epoch, tip.keys.number, now)
    else:
        head = msgspec.structs.replace(_later(was.head, now), trust=tip.keys.number)
    return _swap(was, head, Signing(tip, key), new.made)


def _later(head: Head, now: Now) -> Head:
    """The same HEAD, written anew now; it is good for as long as it was before."""
    later = max(int(now()), head.time + 1)
    return msgspec.structs.replace(head, time=later, expires=expiry(later, lifetime(head)))


def _first_of(was: Published, epoch: int, trust: int, now: Now) -> Head:
    """The HEAD of a new epoch's version 1, which has a snapshot of all that was published and no diffs."""
    head, tree = was.head, was.head.snapshot
    if head.snapshot_version != head.version:
        tree, found = carry(was.reader, tree, was.chain, was.sink(CHUNKS), was.reader.pool)
        if found != head.checksum:
            raise ChecksumMismatch(f"the records in {was.store.where} do not have the checksum that HEAD gives")
    time = int(now()) if head.time > now() + DAY else max(int(now()), head.time + 1)
    first = msgspec.structs.replace(
        head,
        epoch=epoch,
        version=1,
        time=time,
        expires=expiry(time, lifetime(head)),
        snapshot_version=1,
        snapshot=tree,
        diffs=[],
        log=None,
        publish_id=os.urandom(16).hex(),
        trust=trust,
    )
    return sealed(first, was.cipher)


def _swap(was: Published, head: Head, signing: Signing | None, made: list[str] | None = None) -> Renewed:
    """Put `head` in the place of HEAD, which is archived if its version is superseded. Raises Conflict."""
    data = format_head(head) if signing is None else signing.sign(head)
    check_in_time(was.store, was.began)
    was.store.flush()
    if head.epoch != was.head.epoch:
        was.store.create(archive_path(was.head.epoch, was.head.version), was.data)
    anew = head.version == was.head.version and head.epoch == was.head.epoch
    place(was.store, was.token, head, data, was.began, anew=anew)
    return Renewed(head, signing, made or [])
