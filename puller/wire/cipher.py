"""Encryption (SPEC 11): secrets, and what they make of frames and of the part of HEAD that is sealed. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from puller.errors import Corrupt, Invalid, Unsupported
from puller.wire.codec import MAX_INTEGER
from puller.wire.head import ENCRYPTION, KINDS, Head, is_name
from puller.wire.links import Link, clear_part, encode_links

NONCE, TAG = 12, 16
_FORM = "HEADWATER-SECRET"
_TEXT = re.compile(rf"{_FORM}\+([^+]+)\+([0-9a-f]{{8}})\+([A-Za-z0-9+/]{{43}}=)")


class Secret(NamedTuple):
    """The key of one encrypted dataset: 32 random bytes that are shown to nobody, and the dataset's name."""

    name: str
    key: bytes

    def __repr__(self) -> str:
        return f"Secret({self.name!r}, id {self.id})"

    @property
    def id(self) -> str:
        """What HEAD calls the key: 8 hexadecimal digits that say nothing about it (SPEC 11.1)."""
        return self.derive("id")[:4].hex()

    @property
    def text(self) -> str:
        """The line of a secret's file (SPEC 11.1)."""
        return f"{_FORM}+{self.name}+{self.id}+{base64.b64encode(self.key).decode()}"

    def derive(self, use: str) -> bytes:
        """A key of 32 bytes for one use: HKDF-SHA256 without salt (RFC 5869)."""
        extracted = hmac.digest(bytes(32), self.key, "sha256")
        return hmac.digest(extracted, f"headwater-secret/1 {use} {self.name}".encode() + b"\x01", "sha256")


def is_secret_text(text: str) -> bool:
    """Whether a text means to be a secret itself, and not the name of a file."""
    return text.startswith(_FORM)


def parse_secret(text: str) -> Secret:
    """The secret that the text of its file stands for. Raises Invalid; the message shows nothing of it."""
    match = _TEXT.fullmatch(text.strip())
    if match is None or not is_name(match[1]):
        raise Invalid(f"this is no secret of a dataset ({_FORM}+<name>+<id>+<base64>)")
    try:
        key = base64.b64decode(match[3], validate=True)
    except binascii.Error as error:
        raise Invalid("a secret's base64 is damaged") from error
    secret = Secret(match[1], key)
    if secret.id != match[2] or secret.text != match[0]:
        raise Invalid("a secret is damaged: its key does not have the id that stands before it")
    return secret


class Cipher:
    """Encrypts and decrypts with one secret. Several threads may share one."""

    def __init__(self, secret: Secret) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.secret = secret
        self.id = secret.id
        self._nonces = secret.derive("nonce")
        self._aes = AESGCM(secret.derive("encrypt"))
        self._file = f"headwater-file/1 {secret.name}\n".encode()

    def encrypt(self, frame: bytes, links: Iterable[Link] = ()) -> bytes:
        """The stored bytes of a file with this frame, which refers to other files (SPEC 11.3): always the same ones."""
        clear = encode_links(links)
        return clear + self._encrypt(frame, self._file + clear)

    def decrypt(self, stored: bytes) -> bytes:
        """The frame in a stored file. Raises Corrupt, or Invalid for a clear part of a wrong form."""
        clear = clear_part(stored)
        return self._decrypt(stored[len(clear) :], self._file + clear, "a file")

    def seal(self, head: Head) -> Head:
        """`head` with its kind, checksum and number of records sealed for everybody else (SPEC 11.2)."""
        text = head.checksum.to_bytes(16, "big") + head.records.to_bytes(8, "big") + head.kind.encode()
        needs = [*(need for need in head.needs if need != ENCRYPTION), ENCRYPTION]
        data = self._encrypt(text, _sealing(head))
        return msgspec.structs.replace(head, encryption=self.id, sealed=data, needs=needs)

    def unseal(self, head: Head) -> Head:
        """`head` as it was before it was sealed. Raises Corrupt if this secret did not seal it, for this very version."""
        text = self._decrypt(head.sealed, _sealing(head), "what is sealed in HEAD")
        kind = text[24:].decode("ascii", "replace")
        if kind not in KINDS:
            raise Unsupported(f"the dataset is of kind {kind!r:.40}, unknown to this release: upgrade headwater")
        checksum, records = int.from_bytes(text[:16], "big"), int.from_bytes(text[16:24], "big")
        if records > MAX_INTEGER:
            raise Invalid("HEAD has a number of records out of bounds")
        return msgspec.structs.replace(head, kind=kind, checksum=checksum, records=records)

    def _encrypt(self, text: bytes, about: bytes) -> bytes:
        code = hmac.new(self._nonces, about, "sha256")
        code.update(text)
        nonce = code.digest()[:NONCE]
        return nonce + self._aes.encrypt(nonce, text, about)

    def _decrypt(self, data: bytes, about: bytes, what: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        if len(data) < NONCE + TAG:
            raise Corrupt(f"{what} is too short to be encrypted")
        try:
            return self._aes.decrypt(data[:NONCE], memoryview(data)[NONCE:], about)
        except InvalidTag as error:
            raise Corrupt(f"{what} cannot be decrypted: whoever made it does not have the secret {self.id}") from error


def _sealing(head: Head) -> bytes:
    """What is authenticated with the sealed part of HEAD: all that tells its version from others (SPEC 11.2)."""
    root = head.snapshot.ref.sha256.hex()
    version = f"{head.epoch} {head.version} {head.publish_id} {head.snapshot_version} {root}"
    return f"headwater-sealed/1 {head.name}\n{version}\n".encode()


def sealed(head: Head, cipher: Cipher | None) -> Head:
    """`head` as it is published: sealed where the dataset is encrypted."""
    return head if cipher is None else cipher.seal(head)
