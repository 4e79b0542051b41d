"""Keys and rows: order, exact bytes, and what is refused."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puller.errors import Invalid
from puller.wire import rows as wire
from puller.wire.keys import decode_key, decode_keys, encode_key, encode_keys, table_range
from puller.wire.rows import Column, Json, Table

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False).map(lambda f: f or 0.0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
BLOBS = st.binary(max_size=5)
ELEMENTS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXTS, BLOBS)
NAMES = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FF), min_size=1, max_size=4)


def rank(value):
    """What an element's place in the order depends on."""
    kinds = [type(None), bool, int, float, str, bytes]
    plain = value.encode() if isinstance(value, str) else value
    return kinds.index(type(value)), 0 if value is None else plain


@given(NAMES, st.lists(st.tuples(ELEMENTS, ELEMENTS), min_size=2, max_size=6))
def test_keys_keep_order_and_come_back(table, tuples):
    keys = [encode_key(table, values) for values in tuples]
    assert [decode_key(key) for key in keys] == [(table, values) for values in tuples]
    by_value = sorted(tuples, key=lambda values: [rank(v) for v in values])
    assert [encode_key(table, values) for values in by_value] == sorted(keys)
    low, high = table_range(table)
    assert all(low <= key < high for key in keys)


@given(NAMES, st.lists(st.one_of(TEXTS, INTS), min_size=1, max_size=6, unique=True))
def test_many_keys_at_once_equal_one_by_one(table, values):
    keys = [encode_key(table, [v]) for v in values]
    assert encode_keys(table, [values]) == keys
    assert decode_keys(table, sorted(keys)) == [decode_key(key)[1] for key in sorted(keys)]


@given(
    st.one_of(NAMES, st.sampled_from(["a\0b", "a\nb"])),
    st.one_of(
        st.lists(st.integers(0, 2**63 - 1).map(lambda n: n >> (n % 64)), min_size=1, max_size=6),
        st.lists(INTS, min_size=1, max_size=6),
        st.lists(st.one_of(TEXTS, st.sampled_from(["\n", "\0", "\0\n", "a\nb"])), min_size=1, max_size=6),
        st.lists(ELEMENTS, min_size=1, max_size=6),
    ),
    st.lists(ELEMENTS, min_size=6, max_size=6),
)
def test_columns_of_one_type_give_the_same_keys(table, column, other):
    assert encode_keys(table, [column]) == [encode_key(table, [value]) for value in column]
    other = other[: len(column)]
    assert encode_keys(table, [column, other]) == [encode_key(table, pair) for pair in zip(column, other, strict=True)]


@given(NAMES, NAMES, ELEMENTS, ELEMENTS)
def test_tables_do_not_mix(one, other, a, b):
    if one != other:
        low, high = table_range(one)
        assert not low <= encode_key(other, [b]) < high
        assert low <= encode_key(one, [a]) < high


@given(st.binary(max_size=12))
def test_any_bytes_are_a_canonical_key_or_refused(data):
    try:
        table, values = decode_key(data)
    except Invalid:
        return
    assert encode_key(table, values) == data


@pytest.mark.parametrize("value", [math.nan, 2**63, -(2**63) - 1, [1], Json(1, b"1")])
def test_what_cannot_be_in_a_key(value):
    with pytest.raises(Invalid):
        encode_key("t", [value])


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    st.floats(),
    TEXTS,
    BLOBS,
    st.sampled_from([Json(1, b"[1]"), Json(1, b"9" * 30)]),
)
ANY = Table("t", [Column("id", "int64"), *(Column(f"c{n}", "any") for n in range(3))], [0])


def bits(cell):
    return struct.pack(">d", cell) if isinstance(cell, float) else (type(cell), cell)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5))
def test_rows_come_back_exactly(given_rows):
    rows = [[math.nan if isinstance(c, float) and c != c else c for c in row] for row in given_rows]
    values = [wire.encode_row(row) for row in rows]
    assert values == wire.encode_rows(list(zip(*rows, strict=True)), len(rows)) or not rows
    columns = wire.decode_columns(ANY, values)
    found = list(zip(*columns, strict=True))
    assert [list(map(bits, row)) for row in found] == [list(map(bits, row)) for row in rows]


@given(st.binary(max_size=10))
def test_any_bytes_are_a_canonical_row_or_refused(data):
    try:
        columns = wire.decode_columns(ANY, [data])
    except Invalid:
        return
    assert wire.encode_row([column[0] for column in columns]) == data


def test_an_added_column_changes_no_row():
    wider = Table("t", [*ANY.columns, Column("new", "text")], [0])
    value = wire.encode_row([1, None, None])
    assert [c[0] for c in wire.decode_columns(wider, [value])] == [1, None, None, None]


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        ("int64", [0, -(2**63)], [1.0, True, "1", 2**63, b""]),
        ("float64", [0.0, -0.0, math.inf, math.nan], [0, True, "0"]),
        ("text", ["", "a"], [b"a", 1]),
        ("blob", [b"", b"a"], ["a"]),
        ("bool", [True, False], [0, 1]),
        ("json", [Json(1, b"{}")], [{}, [1], "{}", Json(2, b"{}"), Json(1, b"\xff")]),
        ("any", [0, 0.0, "", b"", True, Json(1, b"1")], [2**63, [1], Json(0, b"")]),
    ],
)
def test_columns_hold_their_type_only(type_, good, bad):
    table = Table("t", [Column("id", "int64"), Column("c", type_)], [0])
    for cell in [*good, None]:
        wire.decode_columns(table, [wire.encode_row([cell])])
    for cell in bad:
        with pytest.raises(Invalid):
            wire.decode_columns(table, [wire.encode_row([cell])])


@given(
    st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(1, 255), st.integers(2**40, 2**40 + 99)), unique=True
    )
)
def test_keys_of_one_integer_are_encoded_and_decoded_as_one_by_one(numbers):
    numbers.sort()
    keys = encode_keys("t", [numbers]) if numbers else []
    assert keys == [encode_key("t", (n,)) for n in numbers]
    assert decode_keys("t", keys) == [(n,) for n in numbers]
    for same in (range(1, 256), range(2**32, 2**32 + 9)):
        whole = list(same)
        assert decode_keys("t", encode_keys("t", [whole])) == [(n,) for n in whole]


@pytest.mark.parametrize("bad", ["1500", "160001", "1c8000000000000000", "1c0100000000000000ff", "16", "1501ff"])
def test_a_bad_integer_is_refused_among_good_ones(bad):
    prefix = bytes.fromhex("307400")
    for keys in ([prefix + bytes.fromhex(bad)], [prefix + bytes.fromhex(bad)] * 3):
        with pytest.raises(Invalid):
            decode_keys("t", keys)
    good = bytes.fromhex("1501" if bad != "1500" else "1502")
    with pytest.raises(Invalid):
        decode_keys("t", sorted([prefix + good, prefix + bytes.fromhex(bad)]))
