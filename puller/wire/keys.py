"""Keys of the `table` kind (SPEC 9.2): a table's name and a primary key as one order-preserving byte string."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import add, itemgetter

from puller.errors import Invalid

Scalar = None | bool | int | float | str | bytes

_NIL, _FALSE, _TRUE, _ZERO, _FLOAT, _TEXT, _BLOB = 0x01, 0x02, 0x03, 0x14, 0x21, 0x30, 0x31
_TAG = [bytes([n]) for n in range(256)]
_TEXT_TAG = _TAG[_TEXT]
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_SIZES = [(bits + 7) >> 3 for bits in range(64)]
_TAGS = [_TAG[_ZERO + size] for size in _SIZES]
"""Bytes and tags of integers from 0, by their number of bits."""


def encode_element(value: Scalar) -> bytes:
    """One element of a tuple (SPEC 9.2). Raises Invalid for what cannot be part of a key."""
    if isinstance(value, str):
        return _TEXT_TAG + _escape(value.encode()) + b"\0"
    if isinstance(value, bool):
        return _TAG[_TRUE if value else _FALSE]
    if isinstance(value, int):
        return _integer(value)
    if value is None:
        return _TAG[_NIL]
    if isinstance(value, bytes):
        return _TAG[_BLOB] + _escape(value) + b"\0"
    if not isinstance(value, float):
        raise Invalid("a nested value, or an integer beyond 64 bits, cannot be part of a key")
    return _float(value)


def _escape(data: bytes) -> bytes:
    return data.replace(b"\0", b"\0\xff") if b"\0" in data else data


def _integer(value: int) -> bytes:
    if not INT_MIN <= value <= INT_MAX:
        raise Invalid(f"{value} does not fit into 64 bits and cannot be part of a key")
    size = (value.bit_length() + 7) >> 3
    if value >= 0:
        return _TAG[_ZERO + size] + value.to_bytes(size, "big")
    return _TAG[_ZERO - size] + (value + (1 << 8 * size) - 1).to_bytes(size, "big")


def _float(value: float) -> bytes:
    if math.isnan(value):
        raise Invalid("NaN cannot be part of a key")
    bits = struct.unpack(">Q", struct.pack(">d", value or 0.0))[0]
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return _TAG[_FLOAT] + int(bits).to_bytes(8, "big")


def encode_key(table: str, key: Sequence[Scalar]) -> bytes:
    """The key of a row: the table's name, then the values of its primary key."""
    return encode_element(table) + b"".join(map(encode_element, key))


def encode_keys(table: str, columns: Sequence[Sequence[Scalar]]) -> list[bytes]:
    """The keys of many rows of one table, given the columns of its primary key; common forms take no call per row."""
    prefix = encode_element(table)
    if len(columns) == 1:
        types = set(map(type, columns[0]))
        if types == {str}:
            return _text_keys(table, columns[0])  # type: ignore[arg-type]
        if types == {int} and (keys := _integer_keys(prefix, columns[0])):  # type: ignore[arg-type]
            return keys
    return list(map(b"".join, zip(repeat(prefix), *map(_elements, columns))))


def _text_keys(table: str, column: Sequence[str]) -> list[bytes]:
    """One text for all keys, cut at newlines, where none of the texts holds a zero or a newline."""
    head = f"{chr(_TEXT)}{table}\0{chr(_TEXT)}"
    joined = (head + ("\0\n" + head).join(column) + "\0").encode()
    keys = joined.split(b"\n")
    if len(keys) == len(column) and joined.count(0) == 2 * len(column):
        return keys
    start = encode_element(table) + _TEXT_TAG
    return [start + _escape(text.encode()) + b"\0" for text in column]


def _integer_keys(prefix: bytes, column: Sequence[int]) -> list[bytes] | None:
    """Keys of integers that all have the same number of bytes, as those of neighbours do; None for others."""
    least, most = min(column), max(column)
    size = most.bit_length() + 7 >> 3
    if least <= 0 or most > INT_MAX or least.bit_length() + 7 >> 3 != size:
        return None
    head = prefix + _TAG[_ZERO + size]
    return list(map(head.__add__, map(int.to_bytes, column, repeat(size), repeat("big"))))  # type: ignore[arg-type]


def _elements(column: Sequence[Scalar]) -> Iterable[bytes]:
    """The element of each value."""
    if set(map(type, column)) == {int} and min(column) >= 0 and max(column) <= INT_MAX:  # type: ignore[type-var, operator]
        bits = list(map(int.bit_length, column))  # type: ignore[arg-type]
        numbers = map(int.to_bytes, column, map(_SIZES.__getitem__, bits), repeat("big"))  # type: ignore[arg-type]
        return map(add, map(_TAGS.__getitem__, bits), numbers)
    return map(encode_element, column)


def decode_key(key: bytes) -> tuple[str, tuple[Scalar, ...]]:
    """The table's name and the primary key in `key`. Raises Invalid unless it is the canonical form."""
    elements = []
    at = 0
    while at < len(key):
        value, at = decode_element(key, at)
        elements.append(value)
    if len(elements) < 2 or not isinstance(elements[0], str):
        raise Invalid("a key is not a table's name and a primary key")
    return elements[0], tuple(elements[1:])


def decode_keys(table: str, keys: Sequence[bytes]) -> list[tuple[Scalar, ...]]:
    """The primary keys in the keys of one table's rows, which ascend."""
    prefix = encode_element(table)
    if (column := _decode_column(prefix, keys)) is not None:
        return list(zip(column))
    rows = []
    for key in keys:
        name, values = decode_key(key)
        if name != table:
            raise Invalid(f"a key of table {name!r} stands among those of {table!r}")
        rows.append(values)
    return rows


def decode_key_columns(table: str, keys: Sequence[bytes], width: int) -> list[Sequence[Scalar]]:
    """The columns of the primary key in the keys of one table's rows, which ascend; there are `width`."""
    if width == 1 and (column := _decode_column(encode_element(table), keys)) is not None:
        return [column]
    rows = decode_keys(table, keys)
    if set(map(len, rows)) - {width}:
        raise Invalid(f"table {table!r} has a key with a wrong number of values")
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _decode_column(prefix: bytes, keys: Sequence[bytes]) -> list[Scalar] | None:
    """The values in keys of one each, all texts without a zero or all integers of one size; None for others.

    The keys ascend: what the first and the last one begin with, all do.
    """
    head = prefix + _TEXT_TAG
    size = len(head)
    if keys and keys[0].startswith(head) and keys[-1].startswith(head):
        zeros = b"".join(keys).count(0) == len(keys) * (head.count(0) + 1)
        if zeros and set(map(itemgetter(-1), keys)) == {0}:
            try:
                return [key[size:-1].decode() for key in keys]
            except UnicodeDecodeError as error:
                raise Invalid("a text in a key is not UTF-8") from error
    return _decode_integers(prefix, keys)


def _decode_integers(prefix: bytes, keys: Sequence[bytes]) -> list[Scalar] | None:
    """The integers in keys of one each, all above 0 and of the same number of bytes; None for others."""
    start = len(prefix)
    size = keys[0][start] - _ZERO if keys and keys[0][start:] else 0
    head = prefix + keys[0][start : start + 1] if 1 <= size <= 8 else b""
    if not head or not (keys[0].startswith(head) and keys[-1].startswith(head)):
        return None
    if set(map(len, keys)) != {len(head) + size} or keys[0][len(head)] == 0:
        return None
    digits = map(itemgetter(slice(len(head), None)), keys)
    numbers: list[Scalar] = list(map(int.from_bytes, digits, repeat("big")))  # type: ignore[arg-type]
    return numbers if int.from_bytes(keys[-1][len(head) :], "big") <= INT_MAX else None


def table_range(table: str) -> tuple[bytes, bytes]:
    """The keys of a table's rows are those in [first, second)."""
    prefix = encode_element(table)
    return prefix, prefix + b"\xff"


def decode_element(key: bytes, at: int) -> tuple[Scalar, int]:
    """The element of a key that begins at an offset, and where the next one does. Raises Invalid."""
    tag = key[at]
    if tag in (_TEXT, _BLOB):
        data, at = _unescape(key, at + 1)
        if tag == _BLOB:
            return data, at
        try:
            return data.decode(), at
        except UnicodeDecodeError as error:
            raise Invalid("a text in a key is not UTF-8") from error
    if _ZERO - 8 <= tag <= _ZERO + 8:
        return _decode_integer(key, at, tag - _ZERO)
    if tag == _FLOAT and at + 9 <= len(key):
        bits = int.from_bytes(key[at + 1 : at + 9], "big")
        bits = bits & ~(1 << 63) if bits >> 63 else bits ^ 0xFFFF_FFFF_FFFF_FFFF
        value: float = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
        if math.isnan(value) or (value == 0 and bits):
            raise Invalid("a key holds NaN or negative zero")
        return value, at + 9
    if tag in (_NIL, _FALSE, _TRUE):
        return (None if tag == _NIL else tag == _TRUE), at + 1
    raise Invalid("a key holds an element of an unknown form")


def _decode_integer(key: bytes, at: int, sign: int) -> tuple[int, int]:
    size = abs(sign)
    end = at + 1 + size
    if end > len(key):
        raise Invalid("a key is cut off")
    value = int.from_bytes(key[at + 1 : end], "big")
    if sign < 0:
        value -= (1 << 8 * size) - 1
    if (value.bit_length() + 7) >> 3 != size or (value < 0) != (sign < 0) or not INT_MIN <= value <= INT_MAX:
        raise Invalid("a key holds an integer that is not in its shortest form")
    return value, end


def _unescape(key: bytes, at: int) -> tuple[bytes, int]:
    start = at
    while True:
        end = key.find(b"\0", at)
        if end < 0:
            raise Invalid("a key is cut off")
        if key[end + 1 : end + 2] != b"\xff":
            return key[start:end].replace(b"\0\xff", b"\0"), end + 1
        at = end + 2
