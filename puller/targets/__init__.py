"""Targets: where a dataset is kept. `open_target` finds the one that fits."""

from __future__ import annotations

import os

from puller.errors import UsageError
from puller.sqlitefile import is_database
from puller.targets.base import Target

_SQLITE = (".db", ".sqlite", ".sqlite3")
_JSONL = (".jsonl", ".ndjson")


def form_of(path: str, kind: str | None) -> str:
    """Which form of target `path` asks for, given the dataset's kind where that is known.

    What is there decides, then the name's ending, then the kind. Raises UsageError where they say nothing.
    """
    if os.path.isdir(path) or _leads_to_generation(path):
        return "folder"
    ending = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and (ending in _SQLITE or is_database(path)):
        return "sqlite"
    if ending in _SQLITE and kind != "files":
        return "sqlite"
    if ending in _JSONL and kind != "files":
        return "jsonl"
    if (kind == "files" and ending not in (*_SQLITE, *_JSONL)) or (kind is None and not ending):
        return "folder"
    if kind == "files":
        raise UsageError(f"{path}: this dataset is a folder of files; name a folder, or say --as folder")
    raise UsageError(
        f"{path}: cannot tell what to make; name it *.db or *.sqlite (SQLite) or *.jsonl (JSON Lines), or use --as"
    )


def open_target(
    path: str, kind: str | None = None, form: str | None = None, *, atomic: bool = False, keep: int | None = None
) -> Target:
    """The target at `path`; modules of other forms are not loaded. Raises UsageError if the dataset's kind does not fit.

    `atomic`: a new folder is switched as a whole, and `keep` of its older generations stay; one that is already is so anyway.
    """
    if path == "-":
        raise UsageError("a target is a file or a folder; there is no pulling to standard output")
    form = form or form_of(path, kind)
    if atomic and form != "folder":
        raise UsageError(f"{path}: --atomic is for folders; a database or a file changes all at once anyway")
    target: Target
    if form == "folder":
        target = _folder(path, atomic, keep)
    elif form == "sqlite":
        from puller.targets.sqlite import SQLiteTarget

        target = SQLiteTarget(path)
    else:
        from puller.targets.jsonl import JsonLinesTarget

        target = JsonLinesTarget(path)
    if kind is not None and kind not in target.kinds:
        raise UsageError(f"a dataset of kind {kind} cannot be kept in a {form} target ({path})")
    return target


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
