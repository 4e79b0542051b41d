"""Strict JSON objects (SPEC 7.2), which HEAD and key sets are: one reading only, whole numbers, bounded nesting. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from puller.errors import Invalid
from puller.wire.codec import MAX_INTEGER

MAX_NESTING = 32
MAX_TIME = 9_000_000_000
_HEX = re.compile(r"[0-9a-f]*")


def json_object(line: str, what: str) -> dict[str, Any]:
    """The one object that `line` holds; `what` names the file in errors. Raises Invalid for what is not strict."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(items)
        if len(fields) != len(items):
            raise Invalid(f"{what} has a duplicate field")
        return fields

    def refuse(token: str) -> Any:
        raise Invalid(f"{what} has a number that is no integer: {token:.40}")

    def whole(token: str) -> int:
        if len(token) > 17 or abs(int(token)) > MAX_INTEGER or token == "-0":
            raise Invalid(f"{what} has a number out of bounds: {token:.40}")
        return int(token)

    try:
        fields = json.loads(line, object_pairs_hook=pairs, parse_float=refuse, parse_constant=refuse, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what} is not strict JSON: {error}") from error
    if not isinstance(fields, dict) or _is_deep(fields, MAX_NESTING):
        raise Invalid(f"{what} is not a JSON object, or nested more than 32 deep")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"{what} has a lone surrogate in a text") from error
    return fields


def _is_deep(value: Any, most: int) -> bool:
    """Whether arrays and objects in `value` are nested more than `most` deep, itself included."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (most == 0 or any(_is_deep(item, most - 1) for item in inner))


def field(fields: dict[str, Any], name: str, type_: type, what: str = "HEAD") -> Any:
    """The member `name`, which must be there and of that type exactly."""
    value = fields.get(name)
    if type(value) is not type_:
        raise Invalid(f"{what} has no proper field {name!r}")
    return value


def integer(fields: dict[str, Any], name: str, least: int = 0, most: int = MAX_INTEGER, what: str = "HEAD") -> int:
    """The whole number `name`, within these bounds."""
    value = field(fields, name, int, what)
    if not least <= value <= most:
        raise Invalid(f"{what} has a field {name!r} that is not from {least} to {most}")
    return int(value)


def hexadecimal(value: Any, size: int, what: str = "HEAD") -> bytes:
    """The bytes that a text of lower-case hexadecimal digits stands for; exactly `size` of them."""
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise Invalid(f"{what} has a value that is not {2 * size} lower-case hexadecimal digits")
    return bytes.fromhex(value)
