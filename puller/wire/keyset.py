"""Key sets (SPEC 7.5): parsing and writing the texts that say who may sign. Pure; signatures are verified elsewhere."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from puller.errors import Corrupt, Invalid, Unsupported
from puller.wire.head import is_name
from puller.wire.note import Key, Note, parse_key, split_note
from puller.wire.strict import MAX_TIME, field, hexadecimal, integer, json_object

FORMAT = "headwater-trust/1"
MAX_KEY_SET = 65_536
"""Bytes of a key set with its signatures."""
MOST_KEYS = 64
MOST_SETS = 1_000
"""Key sets that a reader follows from the one it pinned."""


class KeySet(msgspec.Struct, frozen=True):
    """Who may sign (SPEC 7.5): `keys` HEADs of `epoch`, `threshold` of the `roots` key sets. `previous` is a SHA-256."""

    name: str
    number: int
    epoch: int
    time: int
    previous: bytes | None
    keys: list[Key]
    roots: list[Key]
    threshold: int


def format_key_set(keys: KeySet) -> str:
    """The text of a key set, to be signed."""
    fields = {
        "number": keys.number,
        "epoch": keys.epoch,
        "time": keys.time,
        "previous": None if keys.previous is None else keys.previous.hex(),
        "keys": list(map(str, keys.keys)),
        "roots": list(map(str, keys.roots)),
        "threshold": keys.threshold,
    }
    return f"{FORMAT} {keys.name}\n{json.dumps(fields, separators=(',', ':'), ensure_ascii=False)}\n"


def parse_key_set(data: bytes) -> tuple[KeySet, Note]:
    """The key set that `data` holds, and its note. Raises Invalid, or Unsupported for another version of the format."""
    note = split_note(data, FORMAT, "key set", MAX_KEY_SET)
    lines = note.text.split("\n")
    name = lines[0].partition(" ")[2]
    if len(lines) != 3 or not is_name(name):
        raise Invalid("the key set does not begin with the format, a name and one line of JSON")
    fields = json_object(lines[1], "key set")
    number = _number(fields, "number", 1)
    previous = fields.get("previous")
    if (previous is None) != (number == 1) or "previous" not in fields:
        raise Invalid("the key set does not name the one before it, or is the first and names one")
    roots = _keys(fields, "roots")
    found = KeySet(
        name=name,
        number=number,
        epoch=_number(fields, "epoch"),
        time=integer(fields, "time", 0, MAX_TIME, what="key set"),
        previous=None if previous is None else hexadecimal(previous, 32, "key set"),
        keys=_keys(fields, "keys"),
        roots=roots,
        threshold=integer(fields, "threshold", 1, len(roots), what="key set"),
    )
    return found, note


def _number(fields: dict[str, Any], name: str, least: int = 0) -> int:
    return integer(fields, name, least, what="key set")


def _keys(fields: dict[str, Any], name: str) -> list[Key]:
    texts = field(fields, name, list, "key set")
    if not 1 <= len(texts) <= MOST_KEYS or not all(isinstance(text, str) for text in texts):
        raise Invalid(f"key set has no proper field {name!r}")
    keys = list(map(parse_key, texts))
    if min(len({(key.name, key.hash) for key in keys}), len({key.data for key in keys})) != len(keys):
        raise Invalid(f"key set has a key twice, or two of one name and hash, in {name!r}")
    return keys


def check_key_set(data: bytes) -> None:
    """Raise Corrupt for what is no key set at all: the host, or something on the way, may have damaged it."""
    try:
        parse_key_set(data)
    except Unsupported:
        return
    except Invalid as error:
        raise Corrupt(str(error)) from error
