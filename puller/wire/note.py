"""Signed notes (SPEC 7.1, 7.5): their text and signature lines, and public keys as text. Pure; verifies nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from puller.errors import Invalid, Unsupported

ED25519 = 1
"""The signature type of the keys that this release verifies; others are carried along."""
DASH = "\u2014"
_MAX_KEY = 8192
_MOST_SIGNATURES = 100


class Key(msgspec.Struct, frozen=True):
    """A public key, `<name>+<hash>+<base64>` as text. `data` has the type byte and then the key's own bytes."""

    name: str
    hash: bytes
    data: bytes

    @property
    def id(self) -> str:
        """The hash in hexadecimal, by which signatures and people name the key."""
        return self.hash.hex()

    def __str__(self) -> str:
        return f"{self.name}+{self.id}+{base64.b64encode(self.data).decode()}"


class Note(msgspec.Struct, frozen=True):
    """A note's signed text, its final newline included, and its signatures: key name, key hash and signature of each."""

    text: str
    signatures: list[tuple[str, bytes, bytes]]


def ed25519_key(name: str, public: bytes) -> Key:
    """The key with these 32 bytes."""
    data = bytes([ED25519]) + public
    return Key(name, hashlib.sha256(name.encode() + b"\n" + data).digest()[:4], data)


def parse_key(text: str) -> Key:
    """The public key that `text` says (SPEC 7.5). Raises Invalid."""
    parts = text.split("+", 2)
    if len(text) > _MAX_KEY or len(parts) != 3 or not is_key_name(parts[0]):
        raise Invalid(f"{text:.80} is no public key: one is <name>+<hash>+<base64>")
    name, digits, encoded = parts
    data = decode_base64(encoded)
    if data is None or len(data) < 2:
        raise Invalid(f"the public key {text:.80} has a part that is no base64")
    if data[0] == ED25519 and (len(data) != 33 or ed25519_key(name, data[1:]).id != digits):
        raise Invalid(f"the public key {text:.80} is mistyped: its hash does not fit")
    if len(digits) != 8 or digits.strip("0123456789abcdef"):
        raise Invalid(f"the public key {text:.80} has a hash that is not 8 lower-case hexadecimal digits")
    return Key(name, bytes.fromhex(digits), data)


def signature_line(key: Key, signature: bytes) -> str:
    """The line that stands below a note for a signature."""
    return f"{DASH} {key.name} {base64.b64encode(key.hash + signature).decode()}\n"


def split_note(data: bytes, form: str, what: str, limit: int) -> Note:
    """The text and the signatures of a note whose first line begins with `form`, as "headwater/1" (SPEC 7.1).

    `what` names the file in errors. Raises Invalid, also beyond `limit` bytes, or Unsupported for another version.
    """
    found = data.split(b"\n", 1)[0].split(b" ", 1)[0]
    if not found.startswith(form.rstrip("0123456789").encode()):
        raise Invalid(f"this is not the {what} of a headwater dataset")
    if found != form.encode():
        name = found.decode(errors="replace")
        raise Unsupported(f"the dataset is in format {name:.40}; this release reads {form}: upgrade headwater")
    if len(data) > limit:
        raise Invalid(f"{what} is over {limit} bytes long")
    try:
        note = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"{what} is not UTF-8 text") from error
    if any(c < " " and c != "\n" for c in note):
        raise Invalid(f"{what} contains a control character")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise Invalid(f"{what} is cut off, or no signed note")
    lines = note[at + 2 :].split("\n")[:-1]
    if len(lines) > _MOST_SIGNATURES:
        raise Invalid(f"{what} has over {_MOST_SIGNATURES} signatures")
    return Note(note[: at + 1], [_signature(line, what) for line in lines])


def _signature(line: str, what: str) -> tuple[str, bytes, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != DASH or not is_key_name(parts[1]):
        raise Invalid(f"{what} has a malformed signature line")
    blob = decode_base64(parts[2])
    if blob is None or len(blob) < 5:
        raise Invalid(f"{what} has a signature that is too short, or not in its one form")
    return parts[1], blob[:4], blob[4:]


def is_key_name(name: str) -> bool:
    """Whether `name` may name a key."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def decode_base64(text: str) -> bytes | None:
    """What base64 stands for; None where it is not in its one form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None
