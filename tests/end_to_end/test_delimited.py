"""CSV and TSV, published by the real command."""

from __future__ import annotations

import csv
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher.sources.delimited import DelimitedSource, find_delimiter
from puller.errors import SourceError
from puller.wire import rows as wire
from tests.conftest import publisher, puller
from tests.plain import publish_source, read_table


def source(path, key=("id",), schema=(), **options):
    return DelimitedSource(str(path), key, "t", schema, **options)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_fields_are_text_as_written(tmp_path, mark, end, delimiter):
    path = tmp_path / "a.csv"
    rows = [["02", "a, b; c", "1.50"], ["01", 'a "b"\nc\td|', ""], ["10", "ü\0", "x"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text", "n"], *rows])
        file.write(end)
    assert read_table(source(path)) == ({"id": "text", "text": "text", "n": "text"}, sorted(map(tuple, rows)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))),
        max_size=8,
        unique_by=lambda row: row[0],
    )
)
def test_whatever_the_standard_library_writes_reads_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "v"), *rows])
    assert read_table(source(path, memory=1))[1] == sorted(rows, key=lambda row: row[0].encode())


def test_types_are_detected_when_asked_and_never_narrowed(tmp_path):
    path = tmp_path / "a.csv"
    head = "id,zip,n,price,ok,mixed,none,big\n"
    path.write_text(head + "2,01234,-7,1.5,true,1,,9223372036854775808\n1,99999,,2,false,x,,1\n")
    kinds, rows = read_table(source(path, detect=True))
    assert kinds == {
        "id": "int64", "zip": "text", "n": "int64", "price": "float64", "ok": "bool", "mixed": "text", "none": "text",
        "big": "float64",
    }  # fmt: skip
    assert rows == [(1, "99999", None, 2.0, False, "x", "", 1.0), (2, "01234", -7, 1.5, True, "1", "", 2.0**63)]
    schema = [wire.Table("t", [wire.Column(name, kind) for name, kind in kinds.items()], [0])]
    path.write_text(head + "1,5,1.5,7,true,3,4,2\n")
    assert read_table(source(path, schema=schema, detect=True)) == (
        kinds | {"n": "float64"}, [(1, "5", 1.5, 7.0, True, "3", "4", 2.0)],
    )  # fmt: skip


def test_whole_numbers_that_a_double_does_not_hold_stay_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "id,n,x\n18446744073709551616,9007199254740993,1e22\n18446744073709551617,0.5,100000000000000000000\n"
    )
    kinds, rows = read_table(source(path, detect=True))
    assert kinds == {"id": "text", "n": "text", "x": "float64"}
    assert rows == [("18446744073709551616", "9007199254740993", 1e22), ("18446744073709551617", "0.5", 1e20)]


@pytest.mark.parametrize(("content", "said"), [
    (b"id,v\n1,2\n2\n", "a.csv:3: this row has not 2 fields"),
    (b'id,v\n1,"a\nb"\n\n2,3,4\n', "a.csv:5: this row has not 2 fields"),
    (b"id,v,v\n1,2,3\n", "a.csv:1: two fields have the name 'v'"),
    (b"id,v\n1,a\n2,\xff\n", "a.csv:3: this is not UTF-8"),
    ("id,v\n".encode("utf-16"), "a.csv:1: this is UTF-16"),
    (b'id,v\n1,"a"b\n', "a.csv:2: "),
    (b'id,v\n3,x\n1,"a\nb"\n2,y\n3,z\n', "lines 2 and 6 have the same key ['3']"),
    (b"x,v\n1,2\n", "a.csv:1: there is no field 'id' for the key, but 'x', 'v'"),
    (b"id,v\n1,2\n" + b"k" * 5000 + b",2\n", "a.csv:3: its key is longer than 4096 bytes"),
])  # fmt: skip
def test_what_is_wrong_is_named_by_its_line(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=re.escape(said) + ".*; nothing was published"):
        publish_source(path, tmp_path / "dest", key=("id",))
    assert not (tmp_path / "dest/HEAD").exists()


def test_an_empty_key_is_refused_where_it_is_a_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,v\n1,x\n,y\n")
    with pytest.raises(SourceError, match=r"a.csv:3: a field of its key is empty"):
        read_table(source(path, detect=True))


def test_a_file_without_a_header_is_keyed_by_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("b;1\na;2\n")
    assert read_table(source(path, key=["1"])) == ({"1": "text", "2": "text"}, [("a", "2"), ("b", "1")])


def test_columns_that_are_moved_or_added_rewrite_nothing_else(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,a,b\n1,x,y\n2,z,w\n")
    publish_source(path, tmp_path / "dest", key=("id",))
    path.write_text("b,id,c,a\ny,1,,x\nw,2,new,z\n")
    outcome = publish_source(path, tmp_path / "dest")
    assert (outcome.updated, outcome.schema_changed) == (2, True)
    path.write_text("id,a,b,c\n2,z,w,new\n1,x,y,\n")
    assert not publish_source(path, tmp_path / "dest", cache=False).changed


def test_standard_input_and_tsv_and_the_way_back(tmp_path):
    rows = [{"id": f"{n:05}", "v": f"{n}\t" * (n % 3)} for n in range(3000)]
    shuffled = random.Random(1).sample(rows, len(rows))
    text = "id\tv\n" + "".join(f'{row["id"]}\t"{row["v"]}"\n' for row in shuffled)
    publisher("publish", "-", tmp_path / "dest", "--as", "tsv", "--key", "id", stdin=text.encode())
    (tmp_path / "a.tsv").write_text(text)
    assert not publisher("publish", tmp_path / "a.tsv", tmp_path / "dest", "--json").json["changed"]
    puller("pull", tmp_path / "dest", tmp_path / "copy.jsonl")
    assert [json.loads(line) for line in (tmp_path / "copy.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize(("sample", "whole", "found"), [
    ("a,b;c\n1,2;3\n", True, ","), ("a;b;c\n1,5;2;3\n", True, ";"), ("one\ntwo\n", True, ","),
    ("a\tb\n1\t2\n3", False, "\t"), ('a|b\n"x|y"|z\n', True, "|"), ("", True, ","),
])  # fmt: skip
def test_delimiters_are_told_by_the_first_rows(sample, whole, found):
    assert find_delimiter(sample, whole=whole) == found
