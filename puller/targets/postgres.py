"""A PostgreSQL database as target (kinds `table` and `bytes`): the tables of one schema, and one transaction a step.

Bookkeeping is the table `_headwater` beside them: the state and the dataset's schema. So each schema of a database can
keep a dataset; the connection's search path says which one is meant.

A step is staged in temporary tables and applied when it is complete, so that others read without waiting: what needs a
table for itself (a column that is added, a table that goes) is done last. `pgforms` says how records lie there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from puller import postgresql
from puller.errors import Invalid, NotOurs, SchemaChanged, TargetError
from puller.parts import tables_in
from puller.passwords import masked
from puller.postgresql import BOOKKEEPING, one_text, quote
from puller.targets.base import Changes, Check, Opening, State, check_all, check_held, count, whole
from puller.targets.pgforms import Form, forms_of, parts_of
from puller.targets.pgload import Load, Stage, apply_all, change_indexes, extends, index_changes
from puller.targets.pgtables import (
    OID,
    FollowerLock,
    bookkeeping,
    check_encoding,
    is_there,
    lock,
    lock_out,
    lock_out_readers,
    look_up,
    pages,
    schema_name,
    schema_of,
    schema_value,
    store,
    stored,
)
from puller.targets.tables import check_edits, decode_state
from puller.wire import rows as wire
from puller.wire.checksum import MODULUS, Hash, record_hashes, run_sum
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run, Value
from puller.wire.rows import SCHEMA_KEY

if TYPE_CHECKING:
    import psycopg

_KEPT = "what was there was kept"
_FOREIGN = """
SELECT relname FROM pg_class c WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
    AND relname <> %s AND NOT EXISTS
    (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY relname
"""
_COLUMNS = f"""
SELECT attname, format_type(atttypid, atttypmod), array_position(i.indkey::int2[], attnum) FROM pg_attribute
LEFT JOIN pg_index i ON i.indrelid = attrelid AND i.indisprimary
WHERE attrelid = {OID} AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class PostgresTarget:
    """Keeps tables of a database's schema equal to a dataset; other tables are left alone. `address` is libpq's."""

    kinds: tuple[str, ...] = ("table", "bytes")
    gives_values = True
    partial = None

    def __init__(self, address: str) -> None:
        self.where = masked(address)
        self._address = address
        self._db: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        self._free: list[psycopg.Connection[Any]] = []

    def state(self) -> State | None:
        db = self._open()
        with self.errors():
            return self._stored(db)

    def is_there(self) -> bool:
        db = self._open()
        with self.errors():
            return not self.missing(db, self.made(db))

    def missing(self, db: psycopg.Connection[Any], made: dict[str, Form]) -> list[str]:
        """The tables of the dataset that are not in the database any more, and what a step needs of those that are."""
        missing = []
        for name, form in made.items():
            found = {column: (type_, place) for column, type_, place in db.execute(_COLUMNS, (form.table.name,))}
            if not found:
                missing.append(name)
                continue
            for n, column in enumerate(form.table.columns):
                if found.get(column.name, ("", None))[0] != form.kinds[n]:
                    missing.append(f"{name}.{column.name}")
            places = {place: column for column, (_, place) in found.items() if place is not None}
            if [places[place] for place in sorted(places)] != [form.table.columns[n].name for n in form.table.key]:
                missing.append(f"{name}'s primary key")
        return missing

    def made(self, db: psycopg.Connection[Any]) -> dict[str, Form]:
        """The tables of the dataset as they were made."""
        state = self._stored(db)
        if state is None:
            return {}
        value = schema_value(db)
        if value is None and state.kind == "table" and state.records:
            raise TargetError(f"the bookkeeping of {self.where} has lost its schema; {_KEPT}. Pull into a new schema")
        return forms_of(state.kind, tables_in(schema_of(value), state.parts), schema_name(db))

    def remember(self, state: State, was: State) -> None:
        db = self._open()
        with self.errors(), db.transaction():
            lock_out(db)
            held = self._stored(db)
            if held is not None and held.mark == was.mark:
                store(db, "state", msgspec.msgpack.encode(state))

    def lock_following(self) -> FollowerLock:
        """Keep other followers away, also after this target was closed. Raises TargetError where there is one."""
        return FollowerLock(self._address, self.where)

    def close(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        for db in free:
            db.close()
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def reading(self) -> Iterator[_Reading]:
        """A read transaction of its own connection: a step that commits meanwhile does not show in it."""
        with self.snapshot() as db:
            with self.errors():
                state = self._stored(db)
                forms = self.made(db)
            yield _Reading(self, db, state, forms)

    @contextmanager
    def snapshot(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection that sees the database as it is now, until the end; from any thread."""
        with self._lock:
            db = self._free.pop() if self._free else None
        if db is None or db.closed:
            db = postgresql.connect(self._address)
        try:
            with self.errors():
                db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                schema_name(db)
            yield db
            with self.errors():
                db.execute("ROLLBACK")
        except BaseException:
            db.close()
            raise
        with self._lock:
            self._free.append(db)

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[_Writer]:
        db = self._open()
        with self.errors():
            check_encoding(db, self.where)
            db.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            try:
                lock_out(db)
                state = self._stored(db)
                check_held(state, opening, self.where)
                made = self.made(db)
                self._check_foreign(db, state, opening)
                lock(db, [form.at for name, form in made.items() if is_there(db, name)], "SHARE ROW EXCLUSIVE")
                if state is not None and opening.replace and not opening.overwrite:
                    self._check_edits(db, state, made)
                writer = _Writer(self, db, opening, made)
                try:
                    yield writer
                finally:
                    writer.end()
            finally:
                if not db.closed and db.info.transaction_status != 0:
                    db.execute("ROLLBACK")

    def records(self) -> Iterator[Run]:
        with self.snapshot() as db, self.errors():
            yield from self.records_of(db)

    def records_of(self, db: psycopg.Connection[Any]) -> Iterator[Run]:
        """All records as a connection sees them, in key order. Raises LocalEdits."""
        value = schema_value(db)
        if value is not None:
            yield [SCHEMA_KEY], [value]
        for form in self.made(db).values():
            for keys, values in pages(db, form):
                yield keys, list(values)

    def check(self) -> Check:
        with self.snapshot() as db, self.errors():
            return check_all(self.records_of(db), self.missing(db, self.made(db)))

    @contextmanager
    def errors(self, kept: str = _KEPT) -> Iterator[None]:
        """Errors of PostgreSQL as TargetError, those of the connection as Unavailable."""
        with postgresql.errors(self._address, TargetError, kept):
            yield

    def _check_foreign(self, db: psycopg.Connection[Any], state: State | None, opening: Opening) -> None:
        """Raise NotOurs if the schema holds other tables, unless told otherwise."""
        if state is not None or opening.adopt:
            return
        at = schema_name(db)
        foreign = [name for (name,) in db.execute(_FOREIGN, (quote(at), BOOKKEEPING))]
        if foreign:
            raise NotOurs(
                f"schema {at!r} of {self.where} holds tables that headwater did not make ({', '.join(foreign[:5])}); nothing "
                "was written. Use a schema of its own (?options=-csearch_path=NAME), or --adopt to add the dataset's tables"
            )

    def _check_edits(self, db: psycopg.Connection[Any], state: State, made: dict[str, Form]) -> None:
        """Raise LocalEdits if replacing everything would lose something."""

        def checksum() -> int:
            return sum(run_sum(keys, values) for keys, values in self.records_of(db)) % MODULUS

        check_edits(self.where, state, self.missing(db, made), made, lambda: self.extra_columns(db, made), checksum)

    def extra_columns(self, db: psycopg.Connection[Any], made: dict[str, Form]) -> list[str]:
        """The columns of tables that headwater did not make."""
        found = []
        for form in made.values():
            own = {column.name for column in form.table.columns}
            names = [name for name, _, _ in db.execute(_COLUMNS, (form.table.name,))]
            found += [f"{form.table.name}.{name}" for name in names if name not in own]
        return found

    def _open(self) -> psycopg.Connection[Any]:
        if self._db is None or self._db.closed:
            self._db = postgresql.connect(self._address)
        return self._db

    def _stored(self, db: psycopg.Connection[Any]) -> State | None:
        value = stored(db, "state")
        return None if value is None else decode_state(value, self.where, "a new schema")


class _Reading:
    """One state, as a read transaction sees it; rows are what the tables hold, edited or not."""

    lasting = True

    def __init__(
        self, target: PostgresTarget, db: psycopg.Connection[Any], state: State | None, forms: dict[str, Form]
    ) -> None:
        self.state = state
        self._target = target
        self._db = db
        self._forms = forms

    def get(self, key: bytes) -> bytes | None:
        if self.state is None:
            return None
        with self._target.errors():
            if self.state.kind == "table" and key == SCHEMA_KEY:
                return schema_value(self._db)
            try:
                return look_up(self._db, self.state.kind, self._forms, [key])[0]
            except Invalid:
                return None

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
        if self.state is None:
            return
        with self._target.errors():
            if self.state.kind == "table" and lower == SCHEMA_KEY and (upper is None or upper > SCHEMA_KEY):
                value = schema_value(self._db)
                if value is not None:
                    yield [SCHEMA_KEY], [value]
            for form in self._forms.values():
                low, high = (b"", None) if self.state.kind == "bytes" else wire.table_bounds(form.table)
                if (upper is None or low < upper) and (high is None or high > lower):
                    yield from pages(self._db, form, lower, upper)


class _Writer:
    """A step."""

    def __init__(
        self, target: PostgresTarget, db: psycopg.Connection[Any], opening: Opening, made: dict[str, Form]
    ) -> None:
        self._target = target
        self._db = db
        self._opening = opening
        self._changes = Changes()
        self._made = made
        self._at = schema_name(db)
        self._forms = forms_of(opening.kind, [], self._at) if opening.kind == "bytes" else dict(made)
        self._value = schema_value(db)
        self._staged: dict[str, Stage] = {}
        self._leaving: dict[str, Form] = {}
        """Tables that are no more to be held: the stream deletes their rows, and the commit drops them."""
        self._load: Load | None = None
        if opening.replace:
            self._load = Load(target.where, target.missing, db, made)
            if opening.kind == "table":
                self._forms, self._value = {}, None
            for form in self._forms.values():
                self._load.prepare(form)
        elif opening.kind == "table" and opening.parts != opening.parts_before:
            self._forms = self._forms_in(self._value)
            self._leaving = {name: form for name, form in made.items() if name not in self._forms}
            if target.extra_columns(db, self._leaving):
                raise SchemaChanged(f"tables of {target.where} that are no more to be held have columns of their own")

    def end(self) -> None:
        """End a COPY under way."""
        if self._load is not None:
            self._load.abandon()

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        count(self._changes, keys, values, opening=self._opening)
        before: list[Hash | None] = []
        if self._opening.kind == "table" and keys and keys[0] == SCHEMA_KEY:
            before += record_hashes(keys[:1], [self._value])
            self._change_schema(whole(self._opening, keys[:1], values[:1])[0])
            keys, values = keys[1:], values[1:]
        plain = whole(self._opening, keys, values)
        forms = self._forms | self._leaving
        for form, part, rest in parts_of(self._opening.kind, forms, keys, plain) if keys else ():
            if self._load is not None:
                self._load.add(form, part, rest)
                before += [None] * len(part)
                continue
            before += record_hashes(part, self._old(form, part))
            if form.table.name not in self._leaving:
                self._stage(form).add(part, rest)
        return before

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        for keys, values in self._target.records_of(self._db):
            yield keys, record_hashes(keys, values)  # type: ignore[misc]

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        found = look_up(self._db, self._opening.kind, self._made, list(keys))
        if self._opening.kind == "table" and keys and keys[0] == SCHEMA_KEY:
            found[0] = self._value
        return [value if value is not None and len(value) <= MAX_INLINE else None for value in found]

    def overwrites(self) -> list[str]:
        return []

    def commit(self, state: State) -> Changes:
        db = self._db
        if self._load is not None:
            self._load.finish(self._forms)
        else:
            self._apply()
        if not is_there(db, BOOKKEEPING):  # who may write all tables of a copy, but make none, can keep it up to date
            db.execute(f"CREATE TABLE {bookkeeping(db)} (name text PRIMARY KEY, value bytea NOT NULL)")
        if self._value is not None:
            store(db, "schema", self._value)
        else:
            db.execute(f"DELETE FROM {bookkeeping(db)} WHERE name = 'schema'")
        store(db, "state", msgspec.msgpack.encode(state))
        with self._target.errors("whether the step was taken, the next pull will see"):
            db.execute("COMMIT")
        return self._changes

    def _old(self, form: Form, keys: list[bytes]) -> list[bytes | None]:
        """What the table holds under some of its keys."""
        made = self._made.get(form.table.name)
        if made is None or made.table.key != form.table.key:
            return [None] * len(keys)
        return look_up(self._db, self._opening.kind, {form.table.name: made}, keys)

    def _stage(self, form: Form) -> Stage:
        name = form.table.name
        if name not in self._staged:
            self._staged[name] = Stage(self._db, form, len(self._staged))
        return self._staged[name]

    def _change_schema(self, value: bytes | None) -> None:
        """Take up a schema. Raises SchemaChanged where rows would have to be written anew."""
        if value is None:
            raise Invalid("the dataset deletes its schema")
        forms = self._forms_in(value)
        if self._load is not None:
            for form in forms.values():
                self._load.prepare(form)
        else:
            for name in self._made.keys() - self._leaving.keys():
                self._check_follows(self._made[name], forms.get(name))
        self._forms, self._value = forms, value

    def _forms_in(self, value: bytes | None) -> dict[str, Form]:
        """The tables of a schema that are to be held. Raises NotOurs where something else has the name of one."""
        forms = forms_of("table", tables_in(schema_of(value), self._opening.parts), self._at)
        for name, form in forms.items():
            if name not in self._made and is_there(self._db, form.table.name):
                raise NotOurs(
                    f"{self._target.where} has a table {name} that headwater did not make; nothing was written. Rename it, "
                    "or use another schema (?options=-csearch_path=NAME)"
                )
        return forms

    def _check_follows(self, old: Form, new: Form | None) -> None:
        """Raise SchemaChanged if a table cannot become another one by adding columns, and holds something."""
        if new is not None and extends(old, new):
            return
        if one_text(self._db, f"SELECT true FROM {old.at} LIMIT 1"):
            what = "goes" if new is None else "gets another form"
            raise SchemaChanged(f"table {old.table.name!r} of {self._target.where} {what}")

    def _apply(self) -> None:
        """Bring the tables to the new state. What makes readers wait comes first, and only then the rows: a commit is near."""
        db, forms = self._db, self._forms
        kept = {name: form for name, form in self._made.items() if name in forms and extends(form, forms[name])}
        gone = [form for name, form in self._made.items() if name not in kept]
        longer = [name for name in kept if len(kept[name].columns) < len(forms[name].columns)]
        stale = {name: index_changes(form, forms[name]) for name, form in kept.items()}
        touched = [*(form.at for form in gone), *(forms[name].at for name in longer)]
        lock_out_readers(db, [*touched, *(forms[name].at for name, (old, _) in stale.items() if old)])
        for form in gone:
            db.execute(f"DROP TABLE {form.at}")
        for name, form in forms.items():
            if name not in kept:
                db.execute(form.create(form.at))
                db.execute(form.add_key(form.at))
            elif name in longer:
                db.execute(form.add_columns(len(kept[name].columns)))
        apply_all(db, list(self._staged.values()))
        change_indexes(db, forms, stale)
