"""`puller get`, `ls` and `cat`: records from the host, without a copy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from puller.commands.options import expired_option, given_keys, given_parts, mirror_option, parts_options, trust_option
from puller.commands.telling import trusted_fields
from puller.console import EXIT_CODES, common, console, count, printable, secret_option, size, together

if TYPE_CHECKING:
    from puller.parts import Parts
    from puller.remote import Remote
    from puller.wire.jsontext import JsonForm
    from puller.wire.nodes import Value
    from puller.wire.rows import Table


_reading = together(
    click.option("--version", "number", type=click.IntRange(1), help="Read this version, not the newest."),
    mirror_option,
    trust_option,
    expired_option,
    secret_option,
)
"""The options that say which version is read, and whom to believe."""


_MOST_IN_JSON = 1 << 20


_streaming = together(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors beside the records."),
    click.option("-v", "--verbose", is_flag=True, help="Say what it took, on stderr."),
)
"""The options of a command that prints records as they come."""


@contextmanager
def _opened(
    url: str, mirrors: tuple[str, ...], number: int | None, trust: tuple[str, ...], allow_expired: bool,
    secret: str | None, quiet: bool,
) -> Iterator[Remote]:  # fmt: skip
    """The dataset at `url`; whom it was believed is said on stderr, unless a key was given."""
    from puller.remote import Options, open_remote

    options = Options(version=number, trust=given_keys(trust), allow_expired=allow_expired, secret=secret)
    with open_remote(url, options, mirrors) as remote:
        if not trust and not quiet:
            found = trusted_fields(remote.pins)
            word = (
                f"believing the key met there, {' '.join(found['roots'])}; give the right one with --trust"
                if found["signed"]
                else "not signed: whoever can write to the host, or stands between, can change the data"
            )
            click.echo(f"{remote.head.name} version {remote.head.version}: {word}", err=True)
        yield remote


class _WithKeys(click.Command):
    """A command whose arguments may begin with a minus, after `--`; says so where that was left out before a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name[1:2].isdigit():
                raise click.UsageError(
                    f"{error.option_name} looks like an option; put -- before URL where a part of a key begins with a minus: "
                    f"{ctx.command_path} -- URL TABLE {error.option_name}",
                    ctx,
                ) from error
            raise


@click.command("get", cls=_WithKeys, epilog=EXIT_CODES)
@click.argument("url")
@click.argument("key", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help="Write the content to FILE, once all of it was verified.")
@_reading
@common
def get_command(
    url: str,
    key: tuple[str, ...],
    output: str | None,
    number: int | None,
    mirrors: tuple[str, ...],
    trust: tuple[str, ...],
    allow_expired: bool,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Print one record of the dataset at URL; nothing is stored.

    KEY is the path of a file, whose content is printed; TABLE and the values of a row's primary key, of which one JSON
    object is printed (of a dataset with one table, TABLE may be left out; blobs are given in hexadecimal digits); or a key
    of a dataset of kind bytes, whose value is printed as it is. It takes HEAD, an index, and the chunk and the leaves of
    diffs that can hold the record: each is verified, and HEAD as when pulling. A large file is printed as its verified
    pieces come; if they do not fit together in the end, the exit status says so. Exits with 1 if there is no such record.
    Before a KEY that begins with a minus, and its URL, write --.

    \b
    Examples:
      puller get https://data.example.org/rules eu/vat.json
      puller get https://data.example.org/prices prices a1
      puller get -- https://data.example.org/weather readings -5
      puller get -o vat.json --version 41 https://data.example.org/rules eu/vat.json
    """
    out = console(as_json, quiet, verbose)
    with _opened(url, mirrors, number, trust, allow_expired, secret, quiet) as remote:
        read = {"table": _get_row, "files": _get_file, "bytes": _get_bytes}[remote.head.kind]
        content, fields = read(remote, key)
        if output is not None:
            _write_file(output, content, mode=0o777 if fields.get("type") == "executable" else 0o666)
        elif as_json and "row" not in fields:
            fields["content"] = _as_text(content)
        elif not as_json:
            _print(content)
        if as_json:
            head = remote.head
            out.result("", dataset=head.name, version=head.version, kind=head.kind, **fields)
        _say_cost(remote, as_json, quiet, verbose)
    return 0


def _say_cost(remote: Remote, as_json: bool, quiet: bool, verbose: bool) -> None:
    cost = f"{count(remote.requests, 'request')}, {size(remote.received)} received"
    console(as_json, quiet, verbose).detail(cost)


def _get_file(remote: Remote, key: tuple[str, ...]) -> tuple[Iterable[bytes], dict[str, Any]]:
    from puller.errors import UsageError

    if len(key) != 1:
        raise UsageError(f"{remote.head.name} holds files: name one path")
    kind, content = _file(remote, key[0])
    if kind not in (b"f", b"x"):
        raise UsageError(f"{key[0]} is {_not_a_file(kind, b''.join(content))}")
    return content, {"path": key[0], "type": "file" if kind == b"f" else "executable"}


def _not_a_file(kind: bytes, content: bytes) -> str:
    return f"a symbolic link to {os.fsdecode(content)}" if kind == b"l" else "an empty folder"


def _file(remote: Remote, path: str) -> tuple[bytes, Iterator[bytes]]:
    """The type of the file at a path, and its content."""
    from puller.forms import FilesForm
    from puller.remote import absent
    from puller.wire.files import check_values

    key = FilesForm().encode_key(path)
    value = remote.get(key)
    if value is None:
        raise absent(remote, path)
    if isinstance(value, bytes):
        check_values([key], [value])
    parts = remote.content(key, value)
    first = next(parts)
    return first[:1], _after(first[1:], parts)


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _get_bytes(remote: Remote, key: tuple[str, ...]) -> tuple[Iterable[bytes], dict[str, Any]]:
    from puller.errors import UsageError
    from puller.remote import absent

    if len(key) != 1:
        raise UsageError(f"{remote.head.name} holds bytes under keys: name one key")
    name = os.fsencode(key[0])
    value = remote.get(name)
    if value is None:
        raise absent(remote, key[0])
    return remote.content(name, value), {"key": _text(name)}


def _get_row(remote: Remote, key: tuple[str, ...]) -> tuple[Iterable[bytes], dict[str, Any]]:
    import msgspec

    from puller.forms import TableForm
    from puller.remote import absent
    from puller.wire.jsontext import JsonForm

    table, values = _row_key(remote, key)
    wire_key = TableForm([table]).encode_key((table.name, *values))
    value = remote.get(wire_key)
    if value is None:
        raise absent(remote, f"{table.name} {' '.join(map(str, values))}")
    line = _lines(JsonForm(table), [wire_key], [remote.reader.whole(wire_key, value)], first=True)
    return [line], {"table": table.name, "row": msgspec.json.decode(line)}


def _row_key(remote: Remote, words: tuple[str, ...]) -> tuple[Table, list[Any]]:
    """The table and the primary key that a user names."""
    from puller.errors import UsageError

    schema = remote.schema()
    tables = {table.name: table for table in schema}
    if len(schema) == 1 and len(words) == len(schema[0].key):
        table, given = schema[0], words
    elif words[0] in tables:
        table, given = tables[words[0]], words[1:]
    else:
        raise UsageError(f"{remote.head.name} has no table {words[0]!r}; it has {', '.join(tables) or 'none'}")
    columns = [table.columns[n] for n in table.key]
    if len(given) != len(columns):
        names = " ".join(column.name for column in columns)
        raise UsageError(f"a row of table {table.name!r} is named by: {table.name} {names}")
    return table, [_typed(word, column.type, column.name) for word, column in zip(given, columns, strict=True)]


def _typed(word: str, type_: str, column: str) -> Any:
    """A word of the command line as a value of a column."""
    import msgspec

    from puller.errors import UsageError

    if type_ == "text":
        return word
    try:
        if type_ == "blob":
            return bytes.fromhex(word)
        kinds = {"int64": int | None, "float64": float | None, "bool": bool | None}
        return msgspec.json.decode(word, type=kinds.get(type_, int | float | bool | str | None))
    except (ValueError, msgspec.MsgspecError) as error:
        if type_ == "any":
            return word
        raise UsageError(f"{word!r:.200} is no {type_}, which column {column!r} of the key is") from error


@click.command("ls", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("prefix", nargs=-1)
@click.option("-l", "long", is_flag=True, help="With type (of files over 1 MiB: large) and size in bytes.")
@_reading
@_streaming
def ls_command(
    url: str,
    prefix: tuple[str, ...],
    long: bool,
    number: int | None,
    mirrors: tuple[str, ...],
    trust: tuple[str, ...],
    allow_expired: bool,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """List what the dataset at URL holds, in key order; nothing is stored.

    Of files, paths are listed; of tables, a row's table and primary key, separated by tabs. PREFIX is the first characters
    of paths (`rules/eu/`), a table's name, or as JSON a table's name with first values of its key (`["prices", "eu"]`);
    only chunks that hold such are read.

    \b
    Examples:
      puller ls -l https://data.example.org/rules eu/
      puller ls --json https://data.example.org/prices prices
    """
    from puller.parts import parse, ranges_of

    with _opened(url, mirrors, number, trust, allow_expired, secret, quiet) as remote:
        kind = remote.head.kind
        parts = parse(kind, prefix)
        _check_named(remote, parts)
        for keys, values in remote.runs(ranges_of(kind, parts)):
            start = int(kind == "table" and keys[0] == b"")
            _print([_listed(kind, keys[start:], values[start:], long=long, as_json=as_json)])
        _say_cost(remote, as_json, quiet, verbose)
    return 0


def _check_named(remote: Remote, parts: Parts) -> None:
    from puller.parts import check_tables

    if parts and remote.head.kind == "table":
        check_tables(remote.head.name, parts, remote.schema())


def _listed(kind: str, keys: list[bytes], values: list[Value], *, long: bool, as_json: bool) -> bytes:
    """Lines about records."""
    import msgspec

    rows = [_about(kind, key, value) for key, value in zip(keys, values, strict=True)]
    if as_json:
        return msgspec.json.Encoder().encode_lines([row[2] for row in rows])
    lines = [f"{row[0]}{row[1]}" if long else row[1] for row in rows]
    if sys.stdout.isatty():
        lines = list(map(printable, lines))
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def _about(kind: str, key: bytes, value: Value) -> tuple[str, str, dict[str, Any]]:
    """Of a record: type and size, its name, and all of that for JSON."""
    from puller.wire.nodes import Large

    length = value.size if isinstance(value, Large) else len(value or b"")
    if kind == "files":
        names = {b"f": "file", b"x": "executable", b"l": "symlink", b"d": "folder"}
        name = "large" if isinstance(value, Large) else names.get((value or b"")[:1], "unknown")
        path = os.fsdecode(key)
        return f"{name:<10} {length - 1:>14,}  ", path, {"path": path, "type": name, "size": length - 1}
    if kind == "table":
        from puller.wire.keys import decode_key

        table, values = decode_key(key)
        shown = [cell.hex() if isinstance(cell, bytes) else cell for cell in values]
        text = "\t".join(map(_cell, (table, *shown)))
        return f"{length:>14,}  ", text, {"table": table, "key": shown, "size": length}
    return f"{length:>14,}  ", _text(key), {"key": _text(key), "size": length}


def _cell(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@click.command("cat", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("path", nargs=-1)
@parts_options
@_reading
@_streaming
def cat_command(
    url: str,
    path: tuple[str, ...],
    tables: tuple[str, ...],
    prefixes: tuple[str, ...],
    number: int | None,
    mirrors: tuple[str, ...],
    trust: tuple[str, ...],
    allow_expired: bool,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Print records of the dataset at URL; nothing is stored.

    Of a table, rows are printed as JSON Lines in key order, as pulling into *.jsonl does; a dataset with several needs
    --table. Of a dataset of kind bytes, lines with key and value in base64. Of files, the contents of those at each PATH,
    one after the other; with --json, an object with the content in base64 for each.

    \b
    Examples:
      puller cat https://data.example.org/prices | jq .price
      puller cat --prefix '["prices", "eu"]' https://data.example.org/shop
      puller cat https://data.example.org/rules eu/vat.json
    """
    from puller.errors import UsageError
    from puller.parts import parse, ranges_of

    wanted = given_parts(tables, prefixes, whole=False) or []
    with _opened(url, mirrors, number, trust, allow_expired, secret, quiet) as remote:
        kind = remote.head.kind
        if (kind == "files") != bool(path) or (kind == "files" and wanted):
            raise UsageError(
                f"{remote.head.name} holds files: name the paths of those to print (`puller ls` lists them)"
                if kind == "files"
                else f"{remote.head.name} holds no files: choose with --table and --prefix"
            )
        for one in path:
            content, fields = _get_file(remote, (one,))
            _print([_json_line(fields | {"content": _as_text(content)})] if as_json else content)
        if kind == "table":
            _cat_rows(remote, parse(kind, wanted))
        elif kind == "bytes":
            for keys, values in remote.runs(ranges_of(kind, parse(kind, wanted))):
                _print([_pairs(keys, list(map(remote.reader.whole, keys, values)))])
        _say_cost(remote, as_json, quiet, verbose)
    return 0


def _cat_rows(remote: Remote, parts: Parts) -> None:
    from puller.errors import UsageError
    from puller.parts import ranges_of, tables_in
    from puller.wire.jsontext import JsonForm

    _check_named(remote, parts)
    schema = tables_in(remote.schema(), parts)
    if len(schema) > 1:
        names = ", ".join(table.name for table in schema)
        raise UsageError(f"{remote.head.name} has several tables: choose one with --table ({names})")
    form = JsonForm(schema[0]) if schema else None
    first = True
    for keys, values in remote.runs(ranges_of("table", parts)):
        start = int(keys[0] == b"")
        keys, values = keys[start:], values[start:]
        if keys and form is not None:
            _print([_lines(form, keys, list(map(remote.reader.whole, keys, values)), first=first)])
            first = False


def _lines(form: JsonForm, keys: list[bytes], values: list[bytes], *, first: bool) -> bytes:
    """Rows of one table as JSON Lines."""
    from puller.wire.rows import by_table, full_rows

    parts = by_table([form.table], keys, values)
    return b"".join(form.format(full_rows(table, part, rest), first=first) for table, part, rest in parts)


def _json_line(fields: dict[str, Any]) -> bytes:
    import msgspec

    return msgspec.json.encode(fields) + b"\n"


def _pairs(keys: list[bytes], values: list[bytes]) -> bytes:
    import msgspec

    return msgspec.json.Encoder().encode_lines([{"key": k, "value": v} for k, v in zip(keys, values, strict=True)])


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _as_text(content: Iterable[bytes]) -> str:
    """A value of a size that fits a JSON object, in base64."""
    from base64 import b64encode

    from puller.errors import UsageError

    data = b""
    for part in content:
        data += part
        if len(data) > _MOST_IN_JSON:
            raise UsageError("the content is larger than 1 MiB: write it to a file with -o, or leave out --json")
    return b64encode(data).decode()


def _print(parts: Iterable[bytes]) -> None:
    """Write bytes to stdout as they are."""
    for part in parts:
        sys.stdout.buffer.write(part)


def _write_file(path: str, parts: Iterable[bytes], mode: int) -> None:
    """Write a file that is there only once all of it is."""
    temporary = f"{path}.{os.getpid()}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
