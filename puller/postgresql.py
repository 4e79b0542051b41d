"""What both halves must know of PostgreSQL: addresses, connections and their errors, and COPY's rows taken apart in C.

psycopg (the extra `postgres`) is imported when a connection is made, never before.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from puller.errors import HeadwaterError, Invalid, SourceError, TargetError, Unavailable, UsageError
from puller.passwords import masked
from puller.wire.rows import JSON_EXT, Json

if TYPE_CHECKING:
    import psycopg

BOOKKEEPING = "_headwater"
"""The table that a copy keeps beside its tables; no dataset has it."""
_SCHEMES = ("postgresql://", "postgres://")
_OLDEST = 120000
_SECRETS = {"password", "sslpassword"}
_SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "lc_monetary": "C",
    "xmloption": "content",
    "row_security": "off",
    "jit": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""What values look like as text, whatever the server's, the database's or the user's settings are; and no limit in time."""
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "headwater",
    "keepalives_idle": 60,
    "keepalives_interval": 30,
    "keepalives_count": 8,
    "tcp_user_timeout": 300_000,
}
"""What an address may say otherwise. A server that is silent for five minutes counts as gone; one that only takes no rows
meanwhile, because it waits for a lock or a disk, is cut off then, too, so it is not less."""
_STEP, _BLOCK, _LARGE = 64, 64 << 10, 1 << 20
_quiet = logging.NullHandler()
"""psycopg would print what it comes across while an error of its own, which is told, goes on its way."""
BETWEEN = b"],["
"""What stands between the rows of a block, each of which ends with a newline."""
_SHORT = ((b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r"))
_NEGATIVE_ZERO = re.compile(rb'-0"')
"""How "-0" ends, and some texts do: found in half the time that it takes to find the whole."""
_CONTROL = re.compile(rb"[\x01-\x1f]")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def is_address(path: str) -> bool:
    """Whether `path` is the address of a PostgreSQL database."""
    return path.startswith(_SCHEMES)


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str, kind: str) -> str:
    """A text, without a zero character, as an SQL constant of a type."""
    return "'" + text.replace("'", "''") + f"'::{kind}"


def connect(address: str) -> psycopg.Connection[Any]:
    """A connection without a transaction, on which values have one text form. Raises Unavailable, UsageError."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise UsageError("PostgreSQL takes an extra: pip install 'headwater[postgres]'") from error
    logging.getLogger("psycopg").addHandler(_quiet)
    try:
        given = conninfo_to_dict(address)
        _check(address, given)
    except (psycopg.Error, ValueError):
        raise UsageError(
            f"{masked(address)} is no address that PostgreSQL's libpq understands; in a user's name or a password, /, @, : and "
            "other special characters are percent-encoded: %2F, %40, %3A"
        ) from None
    try:
        db = psycopg.connect(
            address,
            autocommit=True,
            **(_CONNECTION | {name: value for name, value in given.items() if name in _CONNECTION and value}),
        )
    except psycopg.Error as error:
        raise Unavailable(f"{masked(address)} cannot be reached: {_plain(address, error)}") from None
    if db.info.server_version < _OLDEST:
        version = db.info.server_version // 10000
        db.close()
        raise UsageError(f"{masked(address)} is PostgreSQL {version}; {_OLDEST // 10000} or newer is needed")
    try:
        db.prepare_threshold = None
        calls = ", ".join(["set_config(%s, %s, false)"] * len(_SETTINGS))
        db.execute(f"SELECT {calls}", list(chain.from_iterable(_SETTINGS.items())))
    except psycopg.Error as error:
        db.close()
        raise Unavailable(f"{masked(address)} cannot be used: {_plain(address, error)}") from None
    return db


def _check(address: str, given: dict[str, Any]) -> None:
    """Raise ValueError where libpq would take part of a password for a host, a port or a database."""
    parts = urlsplit(address)
    if parts.netloc.count("@") > 1 or "@" in parts.path:
        raise ValueError
    if not all(0 < int(port) < 1 << 16 for port in str(given.get("port") or "").split(",") if port):
        raise ValueError


def _plain(address: str, error: Exception) -> str:
    """An error's text in one line, without passwords."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line and not line.endswith("?")) or type(error).__name__
    for secret in _passwords(address):
        text = text.replace(secret, "***")
    return text.rstrip(".")


def _passwords(address: str) -> list[str]:
    from psycopg.conninfo import conninfo_to_dict

    return [str(value) for name, value in conninfo_to_dict(address).items() if name in _SECRETS and value]


@contextmanager
def errors(address: str, kind: type[SourceError | TargetError], kept: str) -> Iterator[None]:
    """Errors of the server as `kind`, those of the connection as Unavailable; `kept` says what happened to the data."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate
        if state is None or state.startswith(("08", "57P")):
            raise Unavailable(f"the connection to {masked(address)} broke: {_plain(address, error)}; {kept}") from None
        raise _refused(address, error, kind, kept) from None


def _refused(address: str, error: psycopg.Error, kind: type[HeadwaterError], kept: str) -> HeadwaterError:
    diagnosis = error.diag
    parts = [diagnosis.message_primary or str(error), diagnosis.message_detail, _place(diagnosis.context)]
    text = "; ".join(part.strip().rstrip(".") for part in parts if part)
    for secret in _passwords(address):
        text = text.replace(secret, "***")
    hints = {
        "55P03": "Somebody holds a lock on it; try again",
        "2BP01": "Drop what depends on the table, and pull again",
        "42501": "Give the user this right, or connect as another",
        "23": "A constraint or trigger of yours stands in the way",
        "54000": "PostgreSQL has no room for such a value there",
    }
    hint = next((hint for code, hint in hints.items() if (error.sqlstate or "").startswith(code)), "")
    return kind(f"{masked(address)}: {text}; {kept}" + (f". {hint}" if hint else ""))


def _place(context: str | None) -> str | None:
    """Where in a COPY an error is, in so many words."""
    if not context or "COPY" not in context:
        return None
    return " ".join(context.split())[:300]


def rows_out(db: psycopg.Connection[Any], query: str) -> Iterator[bytes]:
    """The rows of a query as `TextRows` takes them, some at a time; read all of it, or close the connection.

    A block has about 64 KiB, which stay in a core's cache while they are taken apart, or a single row that is longer.
    The loop over rows is one of C: psycopg's own gives each to Python, which costs three times as much.
    """
    import psycopg
    from psycopg import pq

    row = partial(db.pgconn.get_copy_data, 0)
    form = r"FORMAT csv, FORCE_QUOTE *, ESCAPE '\', NULL 'null'"
    result = db.pgconn.exec_(f"COPY ({query}) TO STDOUT ({form})".encode())
    if result.status != pq.ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(result)
    data: Iterator[bytes] = map(itemgetter(1), iter(row, (-1, b"")))
    parts: list[bytes] = []
    size, step = 0, _STEP
    while part := BETWEEN.join(islice(data, step)):
        parts.append(part)
        size += len(part)
        step = _STEP if len(part) < _LARGE else 1
        if size >= _BLOCK:
            yield BETWEEN.join(parts)
            parts, size = [], 0
    if parts:
        yield BETWEEN.join(parts)
    while (last := db.pgconn.get_result()) is not None:
        if last.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(last)


def one_text(db: psycopg.Connection[Any], query: str, values: Sequence[Any] = ()) -> Any:
    """The first cell of a query's first row."""
    row = db.execute(query, values or None).fetchone()
    return None if row is None else row[0]


class TextRows:
    """Takes the blocks of `rows_out` apart into rows of cells, for columns of types of a dataset (SPEC 9.1).

    A bool column has to come as 0 and 1; `any` gives its text as it is. CSV whose fields are all quoted, with the
    backslash before quotes and itself, is nearly JSON: it is parsed as such in C, and per row no Python runs.
    """

    def __init__(self, types: Sequence[str]) -> None:
        plain: dict[str, Any] = {"int64": int, "float64": float, "bool": bool}
        found = [plain.get(type_, str) | None for type_ in types]
        self._convert = {n: _CONVERTED[type_] for n, type_ in enumerate(types) if type_ in _CONVERTED}
        self._decode = _decoder(found)
        self._floats = [n for n, type_ in enumerate(types) if type_ == "float64"]
        self._decode_exact = _decoder([str | None if n in self._floats else one for n, one in enumerate(found)])

    def columns(self, block: bytes) -> list[Sequence[Any]]:
        """The columns of the rows in a block. Raises Invalid for what is no UTF-8."""
        return list(zip(*self.rows(block), strict=True))

    def rows(self, block: bytes) -> list[tuple[Any, ...]]:
        """The rows in a block. Raises Invalid for what is no UTF-8."""
        text = b"[[" + block + b"]]"
        convert = dict(self._convert)
        decode = self._decode
        # "-0" is read as an integer, without its sign.
        if self._floats and _NEGATIVE_ZERO.search(text) and b'"-0"' in text:
            decode = self._decode_exact
            convert |= dict.fromkeys(self._floats, float)
        try:
            try:
                rows = decode(text)
            except msgspec.DecodeError:
                rows = _decode_controls(text, decode)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"a text that is not UTF-8 ({error})") from error
        if not convert:
            return rows
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for n, one in convert.items():
            columns[n] = each(one, columns[n])
        return list(zip(*columns, strict=True))


def each(convert: Callable[[Any], Any], cells: Sequence[Any]) -> list[Any]:
    """Cells converted one by one; nothing stays nothing."""
    if None not in cells:
        return list(map(convert, cells))
    return [None if cell is None else convert(cell) for cell in cells]


def _decoder(types: list[Any]) -> Callable[[bytes], list[tuple[Any, ...]]]:
    return msgspec.json.Decoder(list[tuple[tuple(types)]], strict=False).decode  # type: ignore[misc]


def _decode_controls(text: bytes, decode: Callable[[bytes], list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """The rows of a block with control characters in its texts, which JSON escapes and CSV does not."""
    ends = text.count(b"\n" + BETWEEN)
    quick = text.replace(b"\n" + BETWEEN, BETWEEN)
    quick = quick[:-3] + quick[-2:]
    for plain, escape in _SHORT:
        quick = quick.replace(plain, escape)
    rows = decode(_CONTROL.sub(_escaped, quick))
    if len(rows) == ends + 1:
        return rows
    return decode(_TEXT.sub(_all_escaped, text))  # a text has what ends a row


def _all_escaped(match: re.Match[bytes]) -> bytes:
    return _CONTROL.sub(_escaped, match.group())


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % match.group()[0]


def _blob(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _json(text: str) -> Json:
    return Json(JSON_EXT, text.encode())


_CONVERTED: dict[str, Callable[[str], Any]] = {"blob": _blob, "json": _json}
