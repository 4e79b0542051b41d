"""How the HEADs of one dataset are signed: its key set, read back and checked, and the private key that fits."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from publisher.keys import Keyring, SigningKey
from publisher.sources.statcache import cache_folder, identity
from puller.errors import Conflict, Distrust, Invalid, NoKey, NotFound, Untrusted
from puller.stores.base import Store
from puller.trust import Signed, check_head, check_step, load, read_key_set
from puller.wire.head import MAX_WRITTEN, Head, format_head, key_set_path
from puller.wire.keyset import KeySet, format_key_set
from puller.wire.note import Key


@dataclass(frozen=True)
class Signing:
    """A key set, and the key by which HEADs that name it are signed. `made` is the file of a key that is new."""

    signed: Signed
    key: SigningKey
    made: str | None = None

    @property
    def keys(self) -> KeySet:
        """The key set."""
        return self.signed.keys

    def sign(self, head: Head) -> bytes:
        """The bytes of `head` with its signature line. Raises Invalid over 4 KiB."""
        data = format_head(head)
        data += self.key.sign(data[:-1].decode()).encode()
        if len(data) > MAX_WRITTEN:
            raise Invalid(f"HEAD would be {len(data)} bytes long with its signature")
        return data


def signing_of(store: Store, head: Head, data: bytes, keyring: Keyring | None) -> Signing:
    """How the next HEAD after `head`, whose bytes are `data`, is signed.

    Raises NoKey where the private key is not at hand, and Untrusted where HEAD is not signed by the key set it names.
    """
    signed = read_key_set(store.get, head.trust, head.name)
    key = (keyring or Keyring()).need(signed.keys.keys, f"the dataset {head.name!r} in {store.where} is signed, which")
    check_head(head, data, signed.keys)
    _note_signed(store, head.name)
    return Signing(signed, key)


def check_unsigned(store: Store, head: Head, keyring: Keyring) -> None:
    """Raise Untrusted where `head` is not signed, though it should be: somebody may have put it in the place of one that was.

    It should be if a private key was given, or if this machine published a signed HEAD there before, as far as it remembers.
    """
    if keyring.given is None and not os.path.exists(_note_of(store, head.name)):
        return
    why = "a private key was given" if keyring.given is not None else "versions published from here were signed"
    raise Untrusted(
        Distrust.UNSIGNED,
        f"HEAD of {head.name!r} in {store.where} is not signed, although {why}; nothing was published. If somebody replaced it, "
        "put the signed one back (a mirror has it, or the store's own older versions; superseded ones are below heads/). "
        "If the dataset is not meant to be signed: --unsigned",
    )


def note_unsigned(store: Store, name: str) -> None:
    """Forget that a dataset was signed: it was published unsigned on purpose, whatever stood there before."""
    with contextlib.suppress(OSError):
        os.unlink(_note_of(store, name))


def _note_signed(store: Store, name: str) -> None:
    """Remember, as far as files can be written here, that a dataset is signed."""
    path = _note_of(store, name)
    if not os.path.exists(path):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(path, "wb"):
                pass


def _note_of(store: Store, name: str) -> str:
    """The file that is there once a dataset was found to be signed."""
    digest = hashlib.sha256(os.fsencode(identity(store.where, name))).hexdigest()
    return os.path.join(cache_folder() or os.devnull, "signed", digest)


def begin(store: Store, name: str, keyring: Keyring, now: int, epoch: int = 1) -> Signing:
    """Write a dataset's first key set, durably, for the key given or one that is made; take up an unfinished creation.

    Raises NoKey where the store has a first key set already whose key is not at hand.
    """
    path = key_set_path(1)
    try:
        left = store.get(path)
    except NotFound:
        key, made = (keyring.given, None) if keyring.given is not None else keyring.make(name)
        try:
            signed = write_set(store, KeySet(name, 1, epoch, now, None, [key.public], [key.public], 1), [key])
        except Conflict:
            if made is not None:
                os.unlink(made)
            left = store.get(path)
        else:
            _note_signed(store, name)
            return Signing(signed, key, made)
    signed = load(left, path)
    if (signed.keys.name, signed.keys.number, signed.keys.epoch) != (name, 1, epoch):
        raise NoKey(f"{store.where} has the key set of another dataset, {signed.keys.name!r}; use another folder")
    key = keyring.need(signed.keys.keys, f"the creation of {name!r} in {store.where} was begun before, and going on")
    return Signing(signed, key, None if keyring.given else keyring.path(key.public))


def write_set(store: Store, keys: KeySet, by: Sequence[SigningKey]) -> Signed:
    """Sign a key set and write it durably, if none has its number. Raises Conflict if somebody else wrote another one."""
    text = format_key_set(keys)
    path = key_set_path(keys.number)
    data = f"{text}\n{''.join(key.sign(text) for key in dict.fromkeys(by))}".encode()
    signed = load(data, path)
    if not store.create(path, data) and store.get(path) != data:
        raise Conflict(f"somebody else wrote {path} to {store.where} just now; nothing was changed. Try again")
    return signed


def newest_set(store: Store, head: Head) -> Signed:
    """The last key set of the chain that goes on from the one HEAD names: a command that was killed may have left one."""
    signed = read_key_set(store.get, head.trust, head.name)
    while True:
        try:
            data = store.get(key_set_path(signed.keys.number + 1))
        except NotFound:
            return signed
        path = key_set_path(signed.keys.number + 1)
        try:
            after = load(data, path)
            check_step(signed, after)
        except Untrusted as error:
            raise Untrusted(
                error.reason,
                f"{error}; nothing was changed. HEAD in {store.where} does not name {path}: find out who wrote it, remove it, "
                "and try again",
            ) from error
        signed = after


def following(signed: Signed, *, epoch: int, now: int, keys: list[Key], roots: list[Key], threshold: int) -> KeySet:
    """The key set that comes after `signed`."""
    old = signed.keys
    previous = hashlib.sha256(signed.data).digest()
    return KeySet(old.name, old.number + 1, epoch, max(now, old.time + 1), previous, keys, roots, threshold)
