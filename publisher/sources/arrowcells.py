"""Columns of Parquet files of any origin as cells of the format: exactly, or as text where the format has no such type.

| Arrow type | column | cells |
| --- | --- | --- |
| bool | bool | |
| int8 … int64, uint8 … uint32, duration | int64 | a duration as the number of its units |
| uint64 | int64 or any | beyond 63 bits as JSON text of its digits (SPEC 9.5) |
| float16, float32, float64 | float64 | every NaN as the canonical one |
| string, large, view | text | |
| binary, large, view, fixed size | blob | |
| decimal | text | its digits with as many places as its scale says |
| date | text | `2024-02-29` |
| time | text | `23:59:59.000000`, as many digits as its unit has |
| timestamp | text | `2024-02-29 23:59:59.000000`; with a time zone the same instant in UTC, with a `Z` |
| list, struct, map | json | canonical JSON text (SPEC 9.5), maps as objects; NaN, infinities, blobs (base64) as text |
| arrow.json | json or any | as JSON Lines has it (SPEC 9.5) |
| arrow.uuid | text | |
| dictionary | as its values | |
| null | as it was; else text | nil |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from puller.errors import Invalid
from puller.wire import rows as wire
from puller.wire.jsontext import cell
from puller.wire.rows import JSON_EXT, Json

Convert = Callable[[Any], Sequence[Any]]
"""Makes cells of an array. Raises Invalid for a value that cannot be told exactly."""

_is = pa.types


def conversion(type_: Any) -> tuple[str, Convert] | None:
    """The column type that an Arrow type becomes ("": what the cells are), and how; None where there is none."""
    if _is.is_dictionary(type_):
        inner = conversion(type_.value_type)
        return inner and (inner[0], lambda array: inner[1](array.dictionary_decode()))
    if isinstance(type_, pa.BaseExtensionType):
        return _extension(type_)
    for fits, kind, convert in _SCALARS:
        if fits(type_):
            return kind, convert
    if _is.is_nested(type_) and (target := _mapped(type_, _in_json)) is not None:
        utc = _mapped(type_, _utc)
        return "json", lambda array: _nested(array, utc, target)
    return None


def _extension(type_: Any) -> tuple[str, Convert] | None:
    if type_.extension_name == "arrow.json":
        return "", _json
    if type_.extension_name == "arrow.uuid":
        return "text", lambda array: [None if value is None else str(value) for value in array.to_pylist()]
    inner = conversion(type_.storage_type)
    return inner and (inner[0], lambda array: inner[1](array.storage))


def _plain(array: Any) -> Sequence[Any]:
    return list(array.to_pylist())


def _integers(array: Any) -> Sequence[Any]:
    return list(pc.cast(array, pa.int64()).to_pylist())


def _unsigned(array: Any) -> Sequence[Any]:
    cells = array.to_pylist()
    most = pc.max(array).as_py()
    return cells if most is None or wire.fits_int64(most) else list(map(cell, cells))


def _floats(array: Any) -> Sequence[Any]:
    array = pc.cast(array, pa.float64())
    nan = pc.is_nan(array)
    return list((pc.if_else(nan, math.nan, array) if pc.any(nan).as_py() else array).to_pylist())


def _dates(array: Any) -> Sequence[Any]:
    texts: list[Any] = pc.cast(array.cast(_utc(array.type)), pa.string()).to_pylist()
    return [text if text is None else _in_range(text) for text in texts]


def _decimals(array: Any) -> Sequence[Any]:
    texts: list[Any] = pc.cast(array, pa.string()).to_pylist()
    return [text if text is None else _positional(text) for text in texts]


def _json(array: Any) -> Sequence[Any]:
    decode = msgspec.json.Decoder().decode
    try:
        return [None if text is None else cell(decode(text)) for text in array.storage.to_pylist()]
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"a text is not JSON: {error}") from error


def _nested(array: Any, utc: Any, target: Any) -> Sequence[Any]:
    was = array.type
    array = pc.cast(pc.cast(array, utc), target)
    values = array.to_pylist()
    if _holds(was, _needs_tidying) or not _all_finite(array):
        values = [_tidied(value, was) for value in values]
    return [None if value is None else Json(JSON_EXT, msgspec.json.encode(value)) for value in values]


def _mapped(type_: Any, leaf: Convert) -> Any:
    """A nested type with other types inside; None where one of them has none, or a map no simple keys."""
    if _is.is_map(type_):
        key, item = _mapped(type_.key_type, leaf), _mapped(type_.item_type, leaf)
        return None if key is None or item is None or _is.is_nested(key) else pa.map_(key, item)
    if _is.is_struct(type_):
        inner = [(field.name, _mapped(field.type, leaf)) for field in type_]
        return None if None in (one for _, one in inner) else pa.struct(inner)
    if _is.is_nested(type_):
        item = _mapped(type_.value_type, leaf)
        return None if item is None else pa.list_(item)
    return leaf(type_)


def _utc(type_: Any) -> Any:
    return pa.timestamp(type_.unit, "UTC") if _is.is_timestamp(type_) and type_.tz is not None else type_


def _in_json(type_: Any) -> Any:
    """The type with JSON's values to which one that is not nested is cast; None where there is none."""
    if _is.is_dictionary(type_):
        return _mapped(type_.value_type, _in_json)
    found = None if isinstance(type_, pa.BaseExtensionType) else conversion(type_)
    if found is None or _is.is_uint64(type_) or found[1] is _plain:
        return None if found is None else type_
    return {"int64": pa.int64(), "float64": pa.float64()}.get(found[0], pa.string())


def _holds(type_: Any, fits: Callable[[Any], bool]) -> bool:
    inner = [type_.field(n).type for n in range(type_.num_fields)]
    return fits(type_) or any(_holds(one, fits) for one in inner)


def _all_finite(array: Any) -> bool:
    type_ = array.type
    if _is.is_floating(type_):
        return pc.all(pc.is_finite(array)).as_py() is not False
    if _is.is_map(type_):
        return _all_finite(array.keys) and _all_finite(array.items)
    if _is.is_struct(type_):
        return all(map(_all_finite, array.flatten()))
    return _all_finite(array.flatten()) if _is.is_nested(type_) else True


def _needs_tidying(type_: Any) -> bool:
    return bool(_is.is_map(type_) or _is.is_decimal(type_) or _is.is_date(type_) or _is.is_timestamp(type_))


def _tidied(value: Any, type_: Any) -> Any:
    """A value, of what was a type, with maps as dicts, decimals without exponents, and what JSON has no number for as text."""
    if value is None:
        return None
    if _is.is_map(type_):
        return {_tidied(k, type_.key_type): _tidied(v, type_.item_type) for k, v in value}
    if _is.is_struct(type_):
        return {field.name: _tidied(value[field.name], field.type) for field in type_}
    if _is.is_nested(type_):
        return [_tidied(one, type_.value_type) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if _is.is_decimal(type_):
        return _positional(value)
    return _in_range(value) if _is.is_date(type_) or _is.is_timestamp(type_) else value


def _positional(text: str) -> str:
    return f"{Decimal(text):f}" if "E" in text else text


def _in_range(text: str) -> str:
    if text.startswith("<"):
        raise Invalid(f"a date or time has no text: {text.strip('<>')}")
    return text


def _nils(array: Any) -> Sequence[Any]:
    return [None] * len(array)


_SCALARS: list[tuple[Callable[[Any], bool], str, Convert]] = [
    (_is.is_boolean, "bool", _plain),
    (_is.is_uint64, "", _unsigned),
    (_is.is_integer, "int64", _plain),
    (_is.is_duration, "int64", _integers),
    (_is.is_floating, "float64", _floats),
    (lambda t: _is.is_string(t) or _is.is_large_string(t) or _is.is_string_view(t), "text", _plain),
    (lambda t: _is.is_binary(t) or _is.is_large_binary(t) or _is.is_binary_view(t), "blob", _plain),
    (_is.is_fixed_size_binary, "blob", _plain),
    (_is.is_decimal, "text", _decimals),
    (lambda t: _is.is_date(t) or _is.is_time(t) or _is.is_timestamp(t), "text", _dates),
    (_is.is_null, "", _nils),
]
