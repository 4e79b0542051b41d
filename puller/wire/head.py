"""HEAD (SPEC 7): parsing and writing the one file that changes. Pure text; signatures are verified elsewhere."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import msgspec

from puller.errors import Invalid, Unsupported
from puller.wire.codec import Ref, check_ref
from puller.wire.nodes import Diff, Tree, diff_form, parse_diff, parse_tree, tree_form
from puller.wire.note import decode_base64, split_note
from puller.wire.strict import MAX_TIME, json_object
from puller.wire.strict import field as _field
from puller.wire.strict import hexadecimal as _hex
from puller.wire.strict import integer as _integer

FORMAT = "headwater/1"
MAX_WRITTEN = 4096
"""Bytes of a HEAD that a publisher may write."""
MAX_HEAD = 16384
"""Bytes of a HEAD that a reader takes: room for signatures that are still to come."""
MAX_INTERVAL = 604_800
MIN_SEALED, MAX_SEALED = 53, 116
"""Bytes of what is sealed in HEAD, with nonce and tag: 24, and a kind of 1 to 64 characters."""
HEAD = "HEAD"
KINDS = ("files", "table", "bytes")
ENCRYPTION = "encryption"
KNOWN_NEEDS = frozenset({ENCRYPTION})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Head(msgspec.Struct, frozen=True):
    """A published version (SPEC 7.2). `checksum` is a 128-bit integer, `time` is in Unix seconds.

    Of an encrypted dataset (SPEC 11), `encryption` is the id of its secret, and `kind`, `checksum` and `records` are in
    `sealed`: as long as it was not opened (`puller.wire.cipher`), the kind is empty.
    """

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
    encryption: str | None = None
    sealed: bytes = b""

    @property
    def order(self) -> tuple[int, int, int]:
        """HEADs of a dataset are ordered by this (SPEC 7.4)."""
        return self.epoch, self.version, self.time


def is_name(name: str) -> bool:
    """Whether `name` may name a dataset (SPEC 7.1)."""
    return _NAME.fullmatch(name) is not None


def key_set_path(number: int) -> str:
    """Where a key set is (SPEC 3)."""
    return f"trust/{number}"


def archive_path(epoch: int, version: int) -> str:
    """Where the bytes of a superseded HEAD are kept (SPEC 3)."""
    return f"heads/{epoch}-{version}"


def format_head(head: Head) -> bytes:
    """The bytes of HEAD without signature lines (SPEC 7.1). Raises Invalid over 4 KiB."""
    fields: dict[str, Any] = {
        "epoch": head.epoch,
        "version": head.version,
        "time": head.time,
        **_meaning(head),
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


def _meaning(head: Head) -> dict[str, Any]:
    """The fields that say what the state is; for readers without the secret, that it is sealed (SPEC 11.2)."""
    if head.encryption is None:
        return {"kind": head.kind, "checksum": f"{head.checksum:032x}", "records": head.records}
    return {"encryption": {"key": head.encryption}, "sealed": base64.b64encode(head.sealed).decode()}


def parse_head(data: bytes) -> Head:
    """The HEAD that `data` holds (SPEC 7). Raises Invalid, or Unsupported for an unknown format or need."""
    lines = split_note(data, FORMAT, HEAD, MAX_HEAD).text.split("\n")
    name = lines[0].partition(" ")[2]
    if len(lines) != 3 or not is_name(name):
        raise Invalid("HEAD does not begin with the format, a name and one line of JSON")
    _check_needs(lines[1])
    return _head(name, json_object(lines[1], HEAD))


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
        **(_sealed(fields) if ENCRYPTION in fields["needs"] else _plain(fields)),
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
    if head.snapshot_version > head.version or any(diff.b > head.version for diff in head.diffs):
        raise Invalid("HEAD names a snapshot or a diff beyond its version")
    return head


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    kind = _field(fields, "kind", str)
    if kind not in KINDS:
        raise Unsupported(f"the dataset is of kind {kind!r:.40}, unknown to this release: upgrade headwater")
    checksum = int.from_bytes(_hex(fields.get("checksum"), 16), "big")
    return {"kind": kind, "checksum": checksum, "records": _integer(fields, "records")}


def _sealed(fields: dict[str, Any]) -> dict[str, Any]:
    if not fields.keys().isdisjoint(("kind", "checksum", "records")):
        raise Invalid("HEAD of an encrypted dataset has a field in the clear that must be sealed")
    key = _hex(_field(fields, "encryption", dict).get("key"), 4).hex()
    sealed = decode_base64(_field(fields, "sealed", str))
    if sealed is None or not MIN_SEALED <= len(sealed) <= MAX_SEALED:
        raise Invalid("HEAD has a field 'sealed' of a wrong length, or that is no base64 in its one form")
    return {"kind": "", "checksum": 0, "records": 0, "encryption": key, "sealed": sealed}


def _hash(value: Any) -> bytes:
    return _hex(value, 32)


def _log(form: Any) -> Ref:
    if not isinstance(form, list) or len(form) != 3 or any(type(n) is not int for n in form[1:]):
        raise Invalid("HEAD has a log that is not [sha256, stored, raw]")
    return check_ref(Ref(_hash(form[0]), form[1], form[2]))
