"""Rows as delimited text: exact both ways, and read as meant by Python's csv module."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puller.errors import Invalid, TargetError
from puller.wire.csvtext import CsvForm
from puller.wire.rows import Column, Json, Table, encode_row

TEXTS = st.text(st.sampled_from('ab ,\t"\n\r\\{[\0é\u2028.1')) | st.text(st.characters(codec="utf-8"))
JSONS = st.sampled_from([b'{"a":[1,"x\\n"]}', b"[]", b"9223372036854775808", b"-9223372036854775809"])
VALUES = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats() | st.just(-0.0) | st.just(math.nan),
    "text": TEXTS | st.sampled_from(["", "true", "1", "1.0", "nan", "\\x00", "NULL"]),
    "blob": st.binary(max_size=5),
    "bool": st.booleans(),
    "json": JSONS.map(lambda text: Json(1, text)),
}
VALUES["any"] = st.one_of(*VALUES.values())


def table(*types: str) -> Table:
    return Table("t", [Column(f"c{n}", type_) for n, type_ in enumerate(types)], [0])


@st.composite
def tables(draw):
    types = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    names = draw(st.lists(TEXTS, min_size=len(types), max_size=len(types), unique=True))
    rows = draw(st.lists(st.tuples(*(VALUES[type_] | st.none() for type_ in types)), min_size=1, max_size=5))
    return Table("t", [Column(*pair) for pair in zip(names, types, strict=True)], [0]), rows


@pytest.mark.parametrize("delimiter", [",", "\t"])
@given(tables())
@settings(max_examples=50, deadline=None)
def test_every_value_comes_back_bit_for_bit(delimiter, given_):
    form, rows = CsvForm(given_[0], delimiter), given_[1]
    found = form.parse(form.format(list(zip(*rows, strict=True))))
    canonical = [tuple(math.nan if isinstance(c, float) and c != c else c for c in row) for row in rows]
    assert list(map(encode_row, zip(*found, strict=True))) == list(map(encode_row, canonical))


@given(st.lists(st.tuples(TEXTS, TEXTS | st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5))
@example([('a"b', None, 1), (",", "", -1)])
@settings(deadline=None)
def test_the_csv_module_reads_the_same_texts(rows):
    form = CsvForm(table("text", "text", "int64"))
    text = (form.header + form.format(list(zip(*rows, strict=True)))).decode()
    found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert found == [["c0", "c1", "c2"], *([a, b or "", str(n)] for a, b, n in rows)]


def test_what_the_fields_look_like():
    cells = ["x", "", None, "a,b", 'say "hi"', "1", "\\x00", "{}", 1, 1.0, -0.0, math.inf, 1e300, True, b"\0\xff", b""]
    cells += [Json(1, b'{"a":1}'), Json(1, b"18446744073709551616"), "true"]
    found = CsvForm(table("int64", "any")).format([range(len(cells)), cells]).decode().splitlines()
    assert [line.partition(",")[2] for line in found] == [
        '"x"', '""', "", '"a,b"', '"say ""hi"""', '"1"', '"\\\\x00"', '"\\{}"', "1", "1.0", "-0.0", "inf", "1e+300", "true",
        "\\x00ff", "\\x", '"{""a"":1}"', "18446744073709551616", '"true"',
    ]  # fmt: skip
    texts = CsvForm(table("text", "text")).format([["a", "b", "c", "d"], ["plain", "", None, "a,b"]])
    assert texts == b'a,plain\nb,""\nc,\nd,"a,b"\n'


@pytest.mark.parametrize(
    "line",
    [
        b"1,2,3\n",
        b"1\n1,2,3\n",
        b"x,a\n",
        b'1,"a"b\n',
        b'1,a"b\n',
        b'1,"a\n',
        b"1,a",
        b"9223372036854775808,a\n",
        b"1,\xff\n",
    ],
)
def test_lines_that_are_no_rows_are_refused(line):
    with pytest.raises(Invalid):
        CsvForm(table("int64", "text")).parse(line)


@pytest.mark.parametrize("text", [b'"text"', b"1.5", b"12", b"true"])
def test_json_text_that_no_writer_makes_is_refused_with_its_column(text):
    with pytest.raises(TargetError, match="'c1'"):
        CsvForm(table("int64", "any")).format([[1], [Json(1, text)]])
