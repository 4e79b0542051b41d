"""Parts of a dataset: prefixes of its keys, the ranges that they stand for, and how ranges add up. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from puller.errors import UsageError
from puller.forms import BytesForm, form_of
from puller.ranges import Bounds, overlaps
from puller.wire.keys import decode_element, table_range
from puller.wire.rows import Table

Parts = tuple[bytes, ...]
"""Prefixes of wire keys, ascending, none of which begins with another; none at all means the whole dataset."""

WHOLE: Parts = ()
EVERYTHING: list[Bounds] = [(b"", None)]
SCHEMA: Bounds = (b"", b"\0")
"""Where the schema of a table is: it belongs to every part."""

V = TypeVar("V")


def parse(kind: str, wanted: Sequence[Any]) -> Parts:
    """The parts that a user names; raises UsageError for what no key of the kind can begin with.

    | kind | a part |
    | --- | --- |
    | `files` | the first characters of paths, a str: "rules/eu/" |
    | `bytes` | the first bytes of keys; a str stands for its UTF-8 |
    | `table` | a table's name, or a tuple: the name and values of the primary key's first columns; or that as JSON |
    """
    form = form_of(kind)
    prefixes = sorted({form.prefix_range(_value(kind, one))[0] for one in wanted})
    kept: list[bytes] = []
    for prefix in prefixes:
        if not (kept and _holds(kind, kept[-1], prefix)):
            kept.append(prefix)
    return tuple(kept)


def _value(kind: str, one: Any) -> Any:
    if kind != "table":
        if isinstance(one, tuple):
            raise UsageError(f"the dataset is of kind {kind} and has no tables; name parts of it with --prefix")
        if not one:
            raise UsageError("an empty prefix is the whole dataset: leave it out")
        if kind == "files" and isinstance(one, str) and not _may_begin(one):
            raise UsageError(
                f"no path of a dataset begins with {one!r:.200}: name it as `puller ls` does, as rules/eu/"
            )
        return one.encode("utf-8", "surrogateescape") if kind == "bytes" and isinstance(one, str) else one
    if isinstance(one, str):
        one = _from_json(one) if one.startswith("[") else (one,)
    if not isinstance(one, tuple) or not one:
        raise UsageError(f"a part of tables is a table's name, or a tuple that begins with one, not {one!r:.200}")
    return one


def _may_begin(prefix: str) -> bool:
    return {"", ".", ".."}.isdisjoint(prefix.split("/")[:-1])


def _from_json(text: str) -> tuple[Any, ...]:
    try:
        return tuple(msgspec.json.decode(text, type=list[str | int | float | bool | None]))
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise UsageError(
            f'{text:.200}: a part of a table is its name, or as JSON ["name", value, …] with first values of its key ({error})'
        ) from error


def _holds(kind: str, outer: bytes, prefix: bytes) -> bool:
    return any(lower <= prefix and (upper is None or prefix < upper) for lower, upper in [_range(kind, outer)])


def _range(kind: str, prefix: bytes) -> Bounds:
    return (prefix, prefix + b"\xff") if kind == "table" else BytesForm().prefix_range(prefix)


def ranges_of(kind: str, parts: Parts) -> list[Bounds]:
    """The ranges of keys that parts stand for, ascending and apart; those of tables begin with the schema's."""
    if not parts:
        return EVERYTHING
    found = [SCHEMA] if kind == "table" else []
    for lower, upper in (_range(kind, prefix) for prefix in parts):
        first = found.pop()[0] if found and found[-1][1] == lower else lower
        found.append((first, upper))
    return found


def named(kind: str, parts: Parts) -> list[str]:
    """Parts as a user names them."""
    if kind != "table":
        return [prefix.decode(errors="backslashreplace") for prefix in parts]
    return [_named(*elements) for elements in map(_elements, parts)]


def _named(table: Any, *values: Any) -> str:
    if not values:
        return str(table)
    shown = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in values]
    return msgspec.json.encode([table, *shown]).decode()


def _elements(prefix: bytes) -> list[Any]:
    found: list[Any] = []
    at = 0
    while at < len(prefix):
        value, at = decode_element(prefix, at)
        found.append(value)
    return found


def tables_named(parts: Parts) -> list[str]:
    """The tables that parts of a dataset of kind `table` name."""
    return list(dict.fromkeys(_elements(prefix)[0] for prefix in parts))


def check_tables(dataset: str, parts: Parts, schema: Iterable[Table], kept: str = "") -> None:
    """Raise UsageError where parts name a table that a dataset's schema does not have; `kept` ends the message."""
    there = [table.name for table in schema]
    if unknown := [name for name in tables_named(parts) if name not in there]:
        raise UsageError(f"{dataset} has no table {unknown[0]!r}; it has {', '.join(there) or 'none'}{kept}")


def tables_in(schema: Iterable[Table], parts: Parts) -> list[Table]:
    """Those tables of a schema that parts name, whole or in part; all for the whole dataset."""
    if not parts:
        return list(schema)
    ranges = ranges_of("table", parts)
    return [table for table in schema if overlaps(ranges, *table_range(table.name))]


def contains(within: Iterable[Bounds], lower: bytes, upper: bytes | None) -> bool:
    """Whether [lower, upper) lies in one of some ranges that are apart."""
    return any(first <= lower and (end is None or (upper is not None and upper <= end)) for first, end in within)


def without(within: Iterable[Bounds], taken: Sequence[Bounds]) -> list[Bounds]:
    """What is left of ranges when others are taken from them; all ascend and are apart."""
    left: list[Bounds] = []
    for lower, upper in within:
        at: bytes | None = lower
        for first, end in taken:
            if at is None or (upper is not None and first >= upper) or (end is not None and end <= at):
                continue
            if at < first:
                left.append((at, first))
            at = end
        if at is not None and (upper is None or at < upper):
            left.append((at, upper))
    return left


def cut(keys: list[bytes], values: list[V], within: Sequence[Bounds]) -> tuple[list[bytes], list[V]]:
    """Those of some records, in key order, that lie in ranges that ascend and are apart."""
    if not keys:
        return keys, values
    kept = [
        (bisect_left(keys, lower), len(keys) if upper is None else bisect_left(keys, upper))
        for lower, upper in within
        if lower <= keys[-1] and (upper is None or upper > keys[0])
    ]
    if len(kept) == 1:
        start, end = kept[0]
        return (keys, values) if end - start == len(keys) else (keys[start:end], values[start:end])
    return (
        [key for start, end in kept for key in keys[start:end]],
        [value for start, end in kept for value in values[start:end]],
    )


def cut_all(
    runs: Iterable[tuple[list[bytes], list[V]]], within: Sequence[Bounds]
) -> Iterator[tuple[list[bytes], list[V]]]:
    """The records of runs that lie in ranges."""
    for keys, values in runs:
        run = cut(keys, values, within)
        if run[0]:
            yield run
