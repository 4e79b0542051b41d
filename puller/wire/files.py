"""The `files` kind (SPEC 8): which keys are safe paths, and what a value says about a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puller.errors import Invalid

FILE, EXECUTABLE, SYMLINK, FOLDER = b"f", b"x", b"l", b"d"
TYPES = frozenset(b"fxld")
RESERVED = b".headwater"
_SEPARATOR = b"/"
_DOTS = frozenset({b"", b".", b".."})
_CONTROL = bytes(range(32)) + b"\x7f"
_IGNORABLE = frozenset(map(chr, [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]))
_MAY_BE_RESERVED = _IGNORABLE | {"."}
_LOWER = {n: n + 32 for n in range(ord("A"), ord("Z") + 1)}


def check_path(key: bytes) -> bytes:
    """Return `key` if it is a safe relative path (SPEC 8.1); raise Invalid otherwise."""
    if not _DOTS.isdisjoint(key.split(_SEPARATOR)) or key.translate(None, _CONTROL) != key:
        raise Invalid(
            f"unsafe path {key!r:.200}: it is absolute, has an empty, '.' or '..' part, or a control character"
        )
    if len(key) > 255 and max(map(len, key.split(_SEPARATOR))) > 255:
        raise _unsafe(key, "a part is longer than 255 bytes")
    try:
        path = key.decode()
    except UnicodeDecodeError as error:
        raise _unsafe(key, "it is not UTF-8") from error
    if path[0] in _MAY_BE_RESERVED and _is_reserved(path.partition("/")[0]):
        raise Invalid("a path lies in .headwater, which is reserved for bookkeeping")
    return key


def _unsafe(key: bytes, reason: str) -> Invalid:
    return Invalid(f"unsafe path {key.decode(errors='backslashreplace'):.200}: {reason}")


def _is_reserved(component: str) -> bool:
    """Whether some file system takes `component` for the bookkeeping folder (SPEC 8.1)."""
    plain = "".join(c for c in component if c not in _IGNORABLE)
    return plain.rstrip(". ").translate(_LOWER) == RESERVED.decode()


def parents(key: bytes) -> list[bytes]:
    """The folders above a path, outermost first."""
    parts = key.split(_SEPARATOR)
    return [_SEPARATOR.join(parts[:n]) for n in range(1, len(parts))]


def check_records(keys: Sequence[bytes], values: Sequence[Any]) -> None:
    """Raise Invalid for a key or a value that SPEC 8 does not allow; deleted and large values are passed over."""
    for key in keys:
        check_path(key)
    check_values(keys, values)


def check_values(keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Raise Invalid for a value that SPEC 8.2 does not allow. An absent value (None) is passed over."""
    for key, value in zip(keys, values, strict=True):
        if not isinstance(value, bytes):
            continue
        kind = value[:1]
        if not kind or kind[0] not in TYPES:
            raise Invalid(f"{key.decode(errors='replace')}: a value of an unknown type")
        if kind == FOLDER and len(value) != 1:
            raise Invalid(f"{key.decode(errors='replace')}: an empty folder with content")
        if kind == SYMLINK and (not 1 < len(value) <= 4096 or b"\0" in value):
            raise Invalid(f"{key.decode(errors='replace')}: a symlink without a proper destination")
