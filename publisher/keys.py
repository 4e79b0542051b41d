"""Private keys: making, storing, finding them, and signing notes with them. `cryptography` is loaded when one is used."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from puller.durable import sync_folder
from puller.errors import HeadwaterError, NoKey, UsageError
from puller.secret import keys_folder
from puller.wire.note import ED25519, PRIVATE, Key, ed25519_key, is_key_name, is_private, signature_line

VARIABLE = "HEADWATER_SIGNING_KEY"
"""The environment variable with a private key's text, for build machines."""


@dataclass(frozen=True)
class SigningKey:
    """A private Ed25519 key. As text it is what Go's `note.GenerateKey` makes: `PRIVATE+KEY+<name>+<hash>+<base64>`."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.public.name}+{self.public.id})"

    @cached_property
    def public(self) -> Key:
        """The public key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return ed25519_key(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """The signature line that goes below a note with this text."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return signature_line(self.public, Ed25519PrivateKey.from_private_bytes(self.seed).sign(text.encode()))

    @property
    def text(self) -> str:
        """The key as text. It is secret."""
        encoded = base64.b64encode(bytes([ED25519]) + self.seed).decode()
        return f"{PRIVATE}{self.name}+{self.public.id}+{encoded}"


def new_key(name: str) -> SigningKey:
    """A new key from the system's randomness. Raises UsageError for what cannot name a key."""
    if not is_key_name(name) or len(name) > 64:
        raise UsageError(f"{name!r} cannot name a key: use up to 64 characters without white space and '+'")
    return SigningKey(name, os.urandom(32))


def parse_private(text: str, where: str) -> SigningKey:
    """The private key that `text` holds. Raises UsageError, which never shows it."""
    parts = text.strip().removeprefix(PRIVATE).split("+", 2)
    try:
        data = base64.b64decode(parts[2], validate=True) if text.startswith(PRIVATE) and len(parts) == 3 else b""
    except ValueError:
        data = b""
    if len(data) != 33 or data[0] != ED25519 or not is_key_name(parts[0]):
        raise UsageError(
            f"{where} holds no private key: one is {PRIVATE}<name>+<hash>+<base64>, as `publisher key new` makes"
        )
    key = SigningKey(parts[0], data[1:])
    if key.public.id != parts[1]:
        raise UsageError(f"the private key in {where} is damaged: its hash does not fit")
    return key


def read_key(path: str) -> SigningKey:
    """The private key in a file. Raises UsageError."""
    if is_private(path):
        raise UsageError(
            f"name the file with the private key, not the key itself, which others may see; or set ${VARIABLE}"
        )
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_private(file.read(4096), path)
    except OSError as error:
        raise UsageError(f"the private key {path} cannot be read: {error.strerror}") from error


def write_key(key: SigningKey, path: str) -> None:
    """Write a private key durably to a new file that only its owner may read.

    Raises UsageError if there is one, HeadwaterError if it cannot be written.
    """
    try:
        keep_private(key.text, path, "the private key")
    except HeadwaterError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise UsageError(f"there is a file {path} already; nothing was written") from error
        raise


def keep_private(text: str, path: str, what: str) -> None:
    """Write a line durably to a new file that only its owner may read; `what` names it in errors. Raises HeadwaterError."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, f"{text}\n".encode())
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(folder)
    except OSError as error:
        raise HeadwaterError(
            f"{what} cannot be kept in {path}: {error.strerror}; nothing was published. Make that folder writable, or set "
            "XDG_CONFIG_HOME"
        ) from error


class Keyring:
    """The private keys that a publisher has: one that was given, one in the environment, and those in its folder."""

    def __init__(self, given: SigningKey | None = None, folder: str | None = None) -> None:
        """`given` comes before the environment's; `folder` is where others are (`keys_folder`)."""
        text = os.environ.get(VARIABLE)
        if given is None and text:
            given = parse_private(text, f"${VARIABLE}")
        self.given = given
        self.folder = folder or keys_folder()

    def path(self, key: Key) -> str:
        """Where a key of the folder is, whether or not it is there."""
        return os.path.join(self.folder, f"{key.name.replace('/', '_')}+{key.id}")

    def find(self, keys: Sequence[Key]) -> SigningKey | None:
        """The private key of the first of these that is at hand, or None."""
        if self.given is not None:
            return self.given if self.given.public in keys else None
        for key in keys:
            path = self.path(key)
            if os.path.exists(path):
                found = read_key(path)
                if found.public == key:
                    return found
        return None

    def where(self, key: Key) -> str | None:
        """Where the private key is: a file, the variable's name, or None if it is not here."""
        if self.given is not None and self.given.public == key:
            return f"${VARIABLE}" if os.environ.get(VARIABLE) else "as given"
        return self.path(key) if os.path.exists(self.path(key)) else None

    def need(self, keys: Sequence[Key], what: str) -> SigningKey:
        """As `find`. Raises NoKey, which says which keys would do and where they were looked for."""
        found = self.find(keys)
        if found is None:
            names = " or ".join(f"{key.name}+{key.id}" for key in keys)
            if self.given is not None:
                looked = f"the key given is {self.given.public.name}+{self.given.public.id}"
            else:
                looked = f"looked for it as {' and '.join(map(self.path, keys))}, and in ${VARIABLE}"
            raise NoKey(
                f"{what} needs the private key {names}: {looked}; nothing was published. Give it with --signing-key"
            )
        return found

    def make(self, name: str) -> tuple[SigningKey, str]:
        """A new key, and the file of the folder that it was written to."""
        key = new_key(name)
        path = self.path(key.public)
        write_key(key, path)
        return key, path
