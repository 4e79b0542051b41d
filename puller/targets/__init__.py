"""Targets: where a dataset is kept. `open_target` finds the one that fits."""

from __future__ import annotations

import os

from puller.errors import Undecided, UsageError
from puller.passwords import masked
from puller.postgresql import is_address
from puller.sqlitefile import is_database
from puller.targets.base import Target

FORMS = ("folder", "sqlite", "postgres", "jsonl", "csv", "tsv", "parquet")
_ENDINGS = {
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def form_of(path: str, kind: str | None) -> str:
    """Which form of target `path` asks for, given the dataset's kind where that is known.

    What is there decides, then the name's ending, then the kind. Raises UsageError where they say nothing, Undecided where
    the kind may.
    """
    if is_address(path):
        return "postgres"
    if os.path.isdir(path) or _leads_to_generation(path):
        return "folder"
    ending = os.path.splitext(path)[1].lower()
    form = _ENDINGS.get(ending)
    if os.path.isfile(path) and (form == "sqlite" or is_database(path)):
        return "sqlite"
    if form is not None and kind != "files":
        return form
    if (kind == "files" and form is None) or (kind is None and not ending):
        return "folder"
    if kind == "files":
        raise UsageError(f"{path}: this dataset is a folder of files; name a folder, or say --as folder")
    raise (Undecided if kind is None else UsageError)(
        f"{path}: cannot tell what to make; name it *.db or *.sqlite (SQLite), *.jsonl (JSON Lines), *.csv, *.tsv or "
        "*.parquet, or use --as"
    )


def open_target(
    path: str, kind: str | None = None, form: str | None = None, *, atomic: bool = False, keep: int | None = None
) -> Target:
    """The target at `path`; modules of other forms are not loaded. Raises UsageError if the dataset's kind does not fit.

    `atomic`: a new folder is switched as a whole, and `keep` of its older generations stay; one that is already is so anyway.
    """
    if path == "-":
        raise UsageError("a target is a file or a folder; there is no pulling to standard output")
    if "://" in path and not is_address(path):
        raise UsageError(f"{path}: a target is a file, a folder, or a database at postgresql://user@host/database")
    form = form or form_of(path, kind)
    if atomic and form != "folder":
        raise UsageError(f"{masked(path)}: --atomic is for folders; a database or a file changes all at once anyway")
    target = _folder(path, atomic, keep) if form == "folder" else _make(path, form)
    if kind is not None and kind not in target.kinds:
        raise UsageError(f"a dataset of kind {kind} cannot be kept in a {form} target ({masked(path)})")
    return target


def _make(path: str, form: str) -> Target:
    if form == "sqlite":
        from puller.targets.sqlite import SQLiteTarget

        return SQLiteTarget(path)
    if form == "postgres":
        from puller.targets.postgres import PostgresTarget

        if not is_address(path):
            raise UsageError(f"{path}: a PostgreSQL database is named by its address: postgresql://user@host/database")
        return PostgresTarget(path)
    if form in ("csv", "tsv"):
        from puller.targets.delimited import DelimitedTarget

        return DelimitedTarget(path, "," if form == "csv" else "\t")
    if form == "parquet":
        from puller.targets.parquet import ParquetTarget

        return ParquetTarget(path)
    from puller.targets.jsonl import JsonLinesTarget

    return JsonLinesTarget(path)


def _leads_to_generation(path: str) -> bool:
    if not os.path.islink(os.path.abspath(path)):
        return False
    from puller.targets.generations import generation_of

    return generation_of(path) is not None


def _folder(path: str, atomic: bool, keep: int | None) -> Target:
    if (atomic and not os.path.isdir(os.path.join(path, ".headwater"))) or _leads_to_generation(path):
        from puller.targets.generations import KEEP, GenerationsTarget

        return GenerationsTarget(path, KEEP if keep is None else keep)
    from puller.targets.folder import FolderTarget

    return FolderTarget(path)
