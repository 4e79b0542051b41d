"""Rows of the `table` kind as Arrow arrays and back, exactly: what Parquet files hold. Needs pyarrow (the extra `parquet`).

| column | Arrow type |
| --- | --- |
| int64, float64, bool | the same |
| text, blob | string, binary |
| json | the extension `arrow.json` over string |
| any | a struct with a member for each type; the member that a value's type names holds it, the others are null |

The schema's metadata under `headwater` has the table as JSON: its name, columns, key and indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from puller.errors import Invalid
from puller.wire import rows as wire
from puller.wire.rows import JSON_EXT, Json, Table

METADATA = b"headwater"
_KINDS: dict[str, type] = {"int64": int, "float64": float, "text": str, "blob": bytes, "bool": bool, "json": Json}
_ARROW = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "text": pa.string(),
    "blob": pa.binary(),
    "bool": pa.bool_(),
    "json": pa.json_(pa.string()),
}
ANY = pa.struct([(name, pa.string() if name == "json" else type_) for name, type_ in _ARROW.items()])
"""A value of a column of type any."""
_ARROW["any"] = ANY


def arrow_schema(table: Table) -> pa.Schema:
    """The columns of a table, as Arrow has them."""
    fields = [(column.name, _ARROW[column.type]) for column in table.columns]
    return pa.schema(fields, metadata={METADATA: msgspec.json.encode(table)})


def table_of(schema: pa.Schema) -> Table | None:
    """The table that the metadata of a schema made by `arrow_schema` says; None for any other schema."""
    found = (schema.metadata or {}).get(METADATA)
    if found is None:
        return None
    try:
        table = msgspec.json.decode(found, type=Table)
        wire.decode_schema(wire.encode_schema([table]))
    except (msgspec.DecodeError, Invalid):
        return None
    return table if arrow_schema(table).equals(schema) else None


def to_array(type_: str, cells: Sequence[Any]) -> pa.Array:
    """The cells of a column of a type."""
    if type_ == "any":
        return _any_array(cells)
    if type_ != "json":
        return pa.array(cells, _ARROW[type_])
    texts = pa.array([None if cell is None else str(cell.data, "utf-8") for cell in cells], pa.string())
    return pa.ExtensionArray.from_storage(_ARROW["json"], texts)


def to_cells(type_: str, array: pa.Array) -> list[Any]:
    """The cells in an array that `to_array` made."""
    if type_ == "any":
        return _any_cells(array)
    if type_ != "json":
        return list(array.to_pylist())
    return [None if text is None else Json(JSON_EXT, text.encode()) for text in array.storage.to_pylist()]


def _any_array(cells: Sequence[Any]) -> pa.Array:
    types = list(map(type, cells))
    children = []
    for field in ANY:
        kind = _KINDS[field.name]
        if kind not in types:
            children.append(pa.nulls(len(cells), field.type))
            continue
        own = [cell if type_ is kind else None for cell, type_ in zip(cells, types, strict=True)]
        if kind is Json:
            own = [None if cell is None else str(cell.data, "utf-8") for cell in own]
        children.append(pa.array(own, field.type))
    nil = pa.array([type_ is type(None) for type_ in types], pa.bool_())
    return pa.StructArray.from_arrays(children, fields=list(ANY), mask=nil)


def _any_cells(array: pa.Array) -> list[Any]:
    cells: list[Any] = [None] * len(array)
    for field, child in zip(ANY, array.flatten(), strict=True):
        if child.null_count == len(child):
            continue
        for n, cell in enumerate(child.to_pylist()):
            if cell is not None:
                cells[n] = Json(JSON_EXT, cell.encode()) if field.name == "json" else cell
    return cells
