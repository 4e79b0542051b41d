"""HEAD (SPEC 7): parsing and writing the one file that changes. Pure text; signatures are verified elsewhere."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

import msgspec

from puller.errors import Invalid, Unsupported
from puller.wire.codec import MAX_INTEGER, Ref, check_ref
from puller.wire.nodes import Diff, Tree, diff_form, parse_diff, parse_tree, tree_form

FORMAT = "headwater/1"
MAX_WRITTEN = 4096
"""Bytes of a HEAD that a publisher may write."""
MAX_HEAD = 16384
"""Bytes of a HEAD that a reader takes: room for signatures that are still to come."""
MAX_TIME = 9_000_000_000
MAX_INTERVAL = 604_800
MAX_NESTING = 32
HEAD = "HEAD"
KINDS = ("files", "table", "bytes")
KNOWN_NEEDS: frozenset[str] = frozenset()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]*")


class Head(msgspec.Struct, frozen=True):
    """A published version (SPEC 7.2). `checksum` is a 128-bit integer, `time` is in Unix seconds."""

    name: str
    epoch: int
    version: int
    time: int
    kind: str
    checksum: int
    records: int
    snapshot_version: int
    snapshot: Tree
    diffs: list[Diff]
    log: Ref | None
    interval: int
    publish_id: str
    trust: int = 0
    needs: list[str] = []
    expires: int | None = None
    keep: int | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        """HEADs of a dataset are ordered by this (SPEC 7.4)."""
        return self.epoch, self.version, self.time


def is_name(name: str) -> bool:
    """Whether `name` may name a dataset (SPEC 7.1)."""
    return _NAME.fullmatch(name) is not None


def archive_path(epoch: int, version: int) -> str:
    """Where the bytes of a superseded HEAD are kept (SPEC 3)."""
    return f"heads/{epoch}-{version}"


def format_head(head: Head) -> bytes:
    """The bytes of HEAD without signature lines (SPEC 7.1). Raises Invalid over 4 KiB."""
    fields: dict[str, Any] = {
        "epoch": head.epoch,
        "version": head.version,
        "time": head.time,
        "kind": head.kind,
        "checksum": f"{head.checksum:032x}",
        "records": head.records,
        "snapshot": {"version": head.snapshot_version, "tree": tree_form(head.snapshot, bytes.hex)},
        "diffs": [diff_form(diff, bytes.hex) for diff in head.diffs],
        "log": None if head.log is None else [head.log.sha256.hex(), head.log.stored, head.log.raw],
        "interval": head.interval,
        "publish_id": head.publish_id,
        "trust": head.trust,
        "needs": head.needs,
    }
    if head.expires is not None:
        fields["expires"] = head.expires
    if head.keep is not None:
        fields["keep"] = head.keep
    text = f"{FORMAT} {head.name}\n{json.dumps(fields, separators=(',', ':'))}\n"
    data = text.encode() + b"\n"
    if len(data) > MAX_WRITTEN:
        raise Invalid(f"HEAD would be {len(data)} bytes long")
    return data


def split_note(data: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text of a note and its signatures: pairs of key name and key hash with signature (SPEC 7.1)."""
    form = data.split(b"\n", 1)[0].split(b" ", 1)[0]
    if not form.startswith(b"headwater/"):
        raise Invalid("this is not the HEAD of a headwater dataset")
    if form != FORMAT.encode():
        name = form.decode(errors="replace")
        raise Unsupported(f"the dataset is in format {name:.40}; this release reads {FORMAT}: upgrade headwater")
    if len(data) > MAX_HEAD:
        raise Invalid(f"HEAD is over {MAX_HEAD} bytes long")
    try:
        note = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("HEAD is not UTF-8 text") from error
    if any(c < " " and c != "\n" for c in note):
        raise Invalid("HEAD contains a control character")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise Invalid("HEAD is cut off, or no signed note")
    return note[: at + 1], [_signature(line) for line in note[at + 2 :].split("\n")[:-1]]


def _signature(line: str) -> tuple[str, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014" or not _is_key_name(parts[1]):
        raise Invalid("HEAD has a malformed signature line")
    try:
        blob = base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("HEAD has a malformed signature") from error
    if len(blob) < 5 or base64.b64encode(blob).decode() != parts[2]:
        raise Invalid("HEAD has a signature that is too short, or not in its one form")
    return parts[1], blob


def _is_key_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() for c in name)


def parse_head(data: bytes) -> Head:
    """The HEAD that `data` holds (SPEC 7). Raises Invalid, or Unsupported for an unknown format or need."""
    text, _ = split_note(data)
    lines = text.split("\n")
    name = lines[0].partition(" ")[2]
    if len(lines) != 3 or not is_name(name):
        raise Invalid("HEAD does not begin with the format, a name and one line of JSON")
    _check_needs(lines[1])
    return _head(name, _json(lines[1]))


def _check_needs(line: str) -> None:
    """Refuse what this release does not know, before anything else in the object is looked at (SPEC 7.3)."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"HEAD is not JSON: {error}") from error
    needs = fields.get("needs") if isinstance(fields, dict) else None
    if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
        raise Invalid("HEAD has no proper field 'needs'")
    unknown = sorted(set(needs) - KNOWN_NEEDS)
    if unknown:
        raise Unsupported(f"the dataset needs {', '.join(unknown)}, unknown to this release: upgrade headwater")


def _head(name: str, fields: dict[str, Any]) -> Head:
    snapshot = _field(fields, "snapshot", dict)
    log = fields.get("log")
    head = Head(
        name=name,
        epoch=_integer(fields, "epoch"),
        version=_integer(fields, "version", 1),
        time=_integer(fields, "time", 0, MAX_TIME),
        kind=_field(fields, "kind", str),
        checksum=int.from_bytes(_hex(fields.get("checksum"), 16), "big"),
        records=_integer(fields, "records"),
        snapshot_version=_integer(snapshot, "version", 1),
        snapshot=parse_tree(snapshot.get("tree"), _hash),
        diffs=[parse_diff(diff, _hash) for diff in _field(fields, "diffs", list)],
        log=None if log is None else _log(log),
        interval=_integer(fields, "interval", 1, MAX_INTERVAL),
        publish_id=_hex(fields.get("publish_id"), 16).hex(),
        trust=_integer(fields, "trust"),
        needs=fields["needs"],
        expires=_integer(fields, "expires", 0, MAX_TIME) if "expires" in fields else None,
        keep=_integer(fields, "keep", 0, MAX_TIME) if "keep" in fields else None,
    )
    if head.kind not in KINDS:
        raise Unsupported(f"the dataset is of kind {head.kind!r:.40}, unknown to this release: upgrade headwater")
    if head.snapshot_version > head.version or any(diff.b > head.version for diff in head.diffs):
        raise Invalid("HEAD names a snapshot or a diff beyond its version")
    return head


def _json(line: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(items)
        if len(fields) != len(items):
            raise Invalid("HEAD has a duplicate field")
        return fields

    def refuse(token: str) -> Any:
        raise Invalid(f"HEAD has a number that is no integer: {token:.40}")

    def integer(token: str) -> int:
        if len(token) > 17 or abs(int(token)) > MAX_INTEGER or token == "-0":
            raise Invalid(f"HEAD has a number out of bounds: {token:.40}")
        return int(token)

    try:
        fields = json.loads(line, object_pairs_hook=pairs, parse_float=refuse, parse_constant=refuse, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"HEAD is not strict JSON: {error}") from error
    if not isinstance(fields, dict) or _is_deep(fields, MAX_NESTING):
        raise Invalid("HEAD is not a JSON object, or nested more than 32 deep")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Invalid("HEAD has a lone surrogate in a text") from error
    return fields


def _is_deep(value: Any, most: int) -> bool:
    """Whether arrays and objects in `value` are nested more than `most` deep, itself included."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (most == 0 or any(_is_deep(item, most - 1) for item in inner))


def _field(fields: dict[str, Any], name: str, type_: type) -> Any:
    value = fields.get(name)
    if type(value) is not type_:
        raise Invalid(f"HEAD has no proper field {name!r}")
    return value


def _integer(fields: dict[str, Any], name: str, least: int = 0, most: int = MAX_INTEGER) -> int:
    value = _field(fields, name, int)
    if not least <= value <= most:
        raise Invalid(f"HEAD has a field {name!r} that is not from {least} to {most}")
    return int(value)


def _hex(value: Any, size: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise Invalid(f"HEAD has a value that is not {2 * size} lower-case hexadecimal digits")
    return bytes.fromhex(value)


def _hash(value: Any) -> bytes:
    return _hex(value, 32)


def _log(form: Any) -> Ref:
    if not isinstance(form, list) or len(form) != 3 or any(type(n) is not int for n in form[1:]):
        raise Invalid("HEAD has a log that is not [sha256, stored, raw]")
    return check_ref(Ref(_hash(form[0]), form[1], form[2]))
