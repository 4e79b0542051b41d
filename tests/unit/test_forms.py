"""Records as Python values, and back: what each kind takes, gives back, and refuses."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puller import forms
from puller.errors import Invalid, UsageError
from puller.forms import BytesForm, File, FilesForm, TableForm, cell, form_of, plain
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Json, Table, decode_columns, encode_row

SCHEMA = [
    Table("t", [Column("x", "any"), Column("id", "any"), Column("j", "json"), Column("n", "any")], [1, 3]),
    Table("t\0", [Column("id", "int64")], [0]),
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False, allow_infinity=False))
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NESTED = st.none() | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=3), JSON, max_size=3)
CELLS = st.one_of(JSON, st.floats(allow_nan=False), st.binary(max_size=5), st.integers(-(2**70), 2**70))
FLOATS = st.floats(allow_nan=False).map(lambda x: x or 0.0)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), FLOATS, st.binary(max_size=4)
) | st.text(max_size=4)


def test_examples_in_docstrings():
    assert doctest.testmod(forms).failed == 0


def exactly(value):
    """A value with the types of all its parts, so that 1, 1.0 and True differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: exactly(part) for key, part in value.items()}
    return (list, list(map(exactly, value))) if isinstance(value, (list, tuple)) else (type(value), repr(value))


@given(st.dictionaries(st.tuples(st.just("t"), SCALARS, SCALARS), st.tuples(CELLS, NESTED), max_size=5))
def test_rows_come_back_exactly(given_rows):
    form = TableForm(SCHEMA)
    pairs = {form.encode_key(k): (k, {"x": x, "id": k[1], "j": j, "n": k[2]}) for k, (x, j) in given_rows.items()}
    keys = sorted(pairs)
    values = [form.encode_value(*pairs[key]) for key in keys]
    decode_columns(SCHEMA[0], values)
    assert list(map(exactly, form.decode_values(keys, values))) == [exactly(pairs[key][1]) for key in keys]
    assert list(map(exactly, form.decode_keys(keys))) == [exactly(pairs[key][0]) for key in keys]
    assert [form.encode_bound(pairs[key][0]) for key in keys] == keys


def test_a_row_has_all_columns_and_only_those():
    form = TableForm(SCHEMA)
    key = form.encode_key(("t", 1, None))
    value = form.encode_value(("t", 1, None), {"j": [1]})
    assert form.decode_values([key], [value]) == [{"x": None, "id": 1, "j": [1], "n": None}]
    assert value == encode_row([None, Json(1, b"[1]")])
    with pytest.raises(UsageError, match="no column 'y'"):
        form.encode_value(("t", 1, None), {"y": 1})
    with pytest.raises(UsageError, match="is not what its key"):
        form.encode_value(("t", 1, None), {"id": 1.0})
    with pytest.raises(UsageError, match="no table 'u'"):
        form.encode_value(("u", 1), {})
    with pytest.raises(UsageError, match="2 columns, not 1"):
        form.encode_value(("t", 1), {})


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        [(1, 2)],
        {1: 2},
        [math.nan],
        [b"x"],
        {1, 2},
        "\ud800",
        ["\ud800"],
        10**4000,
        object(),
        [[]] * 3 + [{"a": ()}],
    ],
)
def test_what_no_row_can_hold_is_refused(value):
    with pytest.raises(UsageError):
        cell(value)


def test_depth_is_bounded():
    deep: list = []
    for _ in range(511):
        deep = [deep]
    assert plain(cell(deep)) == deep
    with pytest.raises(UsageError, match="512 deep"):
        cell([deep])


def test_floats_are_canonical():
    assert encode_row([cell(-math.nan)]).hex() == "91cb7ff8000000000000"
    assert encode_row([cell(-0.0)]).hex() == "91cb8000000000000000"
    assert type(cell(2**63)) is Json
    assert plain(cell(2**63)) == 2**63
    assert type(cell(2**63 - 1)) is int


def test_damaged_json_text_is_an_error_of_the_data():
    with pytest.raises(Invalid):
        plain(Json(1, b"{"))


@pytest.mark.parametrize(
    "key", ["k", 1, ("t",), ["t", 1], (1, "t"), ("t", [1]), ("t", math.nan), ("t", "x" * 5000)], ids=repr
)
def test_keys_that_no_table_has(key):
    with pytest.raises(UsageError):
        TableForm(SCHEMA).encode_key(key)


def test_keys_of_several_tables():
    form = TableForm(SCHEMA)
    keys = [("t", 1, "a"), ("t", "a", 1), ("t\0", -1), ("t\0", 7), ("u", None)]
    wire_keys = [form.encode_key(key) for key in keys]
    assert sorted(wire_keys) == wire_keys
    assert form.decode_keys(wire_keys) == keys


@given(st.lists(st.tuples(st.sampled_from(["t", "t\0", "t\0\0", "u"]), SCALARS), max_size=8), st.integers(0, 2))
def test_a_prefix_of_a_tuple_is_a_range(pairs, size):
    form = TableForm(SCHEMA)
    for prefix in {("t",), ("t\0",), *(pair[:size] for pair in pairs)}:
        low, high = form.prefix_range(prefix)
        for pair in pairs:
            key = form.encode_key(pair)
            inside = form.encode_bound(pair[: len(prefix)]) == form.encode_bound(prefix)
            assert (low <= key and (high is None or key < high)) == inside
    assert form.prefix_range(())[0] > b""


@given(st.binary(max_size=4), st.binary(max_size=5))
def test_a_prefix_of_bytes_is_a_range(prefix, key):
    low, high = BytesForm().prefix_range(prefix)
    assert (low <= key and (high is None or key < high)) == key.startswith(prefix)


def test_bytes_are_taken_as_they_are():
    form = form_of("bytes")
    assert form.encode_key(b"") == b""
    assert form.encode_value(b"", b"v") == b"v"
    for wrong in ("k", 1, None, bytearray(b"k")):
        with pytest.raises(UsageError):
            form.encode_key(wrong)
        with pytest.raises(UsageError):
            form.encode_value(b"", wrong)
    with pytest.raises(UsageError):
        form.encode_key(b"k" * 4097)


def test_files():
    form = form_of("files")
    found = [File(b"c"), File(b"c", "executable"), File(b"../a", "symlink"), File(b"", "folder")]
    values = [form.encode_value("ünï/a", file) for file in found]
    assert values == [b"fc", b"xc", b"l../a", b"d"]
    keys = [form.encode_key(name) for name in ("a", "b", "ünï/a", "ünï/b")]
    assert form.decode_keys(keys) == ["a", "b", "ünï/a", "ünï/b"]
    assert form.decode_values(keys, values) == found
    assert form.prefix_range("ün") == ("ün".encode(), b"\xc3\xbco")
    for path in ("/a", "a/../b", "", "a//b", ".headwater/x", "\ud800", b"a"):
        with pytest.raises(UsageError):
            form.encode_key(path)
    for file in (File(b"x", "folder"), File(b"", "symlink"), File(b"", "device"), File("text"), b"fx"):
        with pytest.raises(UsageError):
            form.encode_value("a", file)


def test_the_forms_follow_the_kind():
    assert isinstance(form_of("table"), TableForm)
    assert isinstance(form_of("files"), FilesForm)
    assert form_of("table", SCHEMA).decode_values([encode_key("t\0", [3])], [b"\x90"]) == [{"id": 3}]
