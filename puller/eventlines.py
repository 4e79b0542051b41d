"""Events of a feed as lines of JSON.

    {"type":"reset","epoch":1,"version":41}
    {"type":"change","epoch":1,"version":42,"table":"prices","key":["a1"],"old":{…},"new":{"sku":"a1","price":9.5}}
    {"type":"change","epoch":1,"version":42,"path":"etc/rules","new":{"type":"file","size":120,"hash":"…"}}
    {"type":"change","epoch":1,"version":42,"key":"a2V5","new":"dmFsdWU="}
    {"type":"commit","epoch":1,"version":42,"from":{"epoch":1,"version":41}}

An absent value is null; where an old value is not known, "old" is left out. Bytes are base64, numbers that JSON does not
have are the texts "NaN", "Infinity" and "-Infinity". A value that is not told is an object of its size in bytes and its
record hash (SPEC 6); so is what lies at a path, with its type where that is known, unless `contents` are asked for.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgspec

from puller.forms import File, FilesForm
from puller.transitions import UNKNOWN, Event, Omitted
from puller.wire.checksum import record_hash
from puller.wire.codec import MAX_INLINE


def line_of(event: Event, kind: str, *, contents: bool) -> bytes:
    """The line of an event of a dataset of some kind, with its newline; `contents` of files are given if asked for."""
    epoch, version = event.position
    fields: dict[str, Any] = {"type": event.type, "epoch": epoch, "version": version}
    if event.type == "change":
        fields |= _key(event.key, kind)
        if event.old is not UNKNOWN:
            fields["old"] = _value(event.key, event.old, contents=contents)
        fields["new"] = _value(event.key, event.new, contents=contents)
    elif event.type == "commit":
        fields["from"] = None if event.since is None else {"epoch": event.since[0], "version": event.since[1]}
    return _encode(fields) + b"\n"


def _key(key: Any, kind: str) -> dict[str, Any]:
    if kind == "table":
        return {"table": key[0], "key": [_cell(part) for part in key[1:]]}
    return {"path" if kind == "files" else "key": key}


def _value(key: Any, value: Any, *, contents: bool) -> Any:
    if isinstance(value, Omitted):
        fields: dict[str, Any] = {} if value.type is None else {"type": value.type}
        return fields | {"size": value.size, "hash": value.hash.hex()}
    if isinstance(value, File):
        form = FilesForm()
        digest = record_hash(form.encode_key(key), form.encode_value(key, value))
        fields = {"type": value.type, "size": len(value.content), "hash": digest.hex()}
        return fields | {"content": value.content} if contents else fields
    if isinstance(value, bytes) and len(value) > MAX_INLINE and not contents:
        return {"size": len(value), "hash": record_hash(key, value).hex()}
    return {name: _cell(cell) for name, cell in value.items()} if isinstance(value, dict) else value


def _cell(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _encode(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except OverflowError:  # an integer beyond 64 bits
        return json.dumps(fields, default=_base64, separators=(",", ":"), ensure_ascii=False).encode()


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()
