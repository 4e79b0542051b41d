"""Which keys a step changes, noted while it is made: names only, no values, in bounded memory."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

from puller.targets.base import Opening
from puller.wire.checksum import Hash
from puller.wire.nodes import Value
from puller.wire.rows import SCHEMA_KEY

MOST = 100_000
"""Keys that are noted; with more, only that much changed is known."""


Keys = dict[bytes, tuple[bool, bool]]
"""For each key that changed, whether it was there before, and is there now."""


class Noted:
    """Notes the keys that a step changes. Use it as a pull's `watch`.

    `at_commit` is called when a step is complete, right before it is committed. Without `names` it only does that.
    """

    def __init__(self, at_commit: Callable[[], None] = lambda: None, *, names: bool = True) -> None:
        self.keys: Keys | None = None
        """Of the last step; None where it is not known which: all of a state was replaced, or too many changed."""
        self._at_commit = at_commit
        self._names = names

    def begin(self, opening: Opening) -> None:
        """A step begins; what was noted of one that failed counts no more."""
        self.keys = None if opening.replace or not self._names else {}

    def note(
        self, keys: list[bytes], values: list[Value], before: list[Hash | None], hashes: list[Hash | None]
    ) -> None:
        """Note a run of the step."""
        if self.keys is None:
            return
        self.keys.update(
            (key, (was is not None, now is not None))
            for key, was, now in zip(keys, before, hashes, strict=True)
            if was != now
        )
        if len(self.keys) > MOST:
            self.keys = None

    def end(self) -> None:
        """The step is complete."""
        self._at_commit()


class Changes:
    """The keys that changed since somebody was last told, by steps one after the other."""

    def __init__(self, *, known: bool) -> None:
        """`known`: whoever is told knows the state that is held now; else anything may have changed since."""
        self._keys: Keys | None = {} if known else None

    def add(self, step: Keys | None) -> None:
        """A step was committed."""
        if self._keys is None or step is None:
            self._keys = None
            return
        for key, (was, now) in step.items():
            self._keys[key] = self._keys[key][0] if key in self._keys else was, now
        if len(self._keys) > MOST:
            self._keys = None

    def named(self, kind: str) -> list[dict[str, Any]] | None:
        """Each changed key as an object, in key order; None where they are not known."""
        return None if self._keys is None else list(_named(kind, self._keys))


def _named(kind: str, keys: Keys) -> Iterator[dict[str, Any]]:
    from puller.wire.keys import decode_key

    for key in sorted(keys):
        was, now = keys[key]
        if not was and not now:
            continue  # added by one step and deleted by the next
        change = "changed" if was and now else "added" if now else "deleted"
        if kind == "files":
            yield {"path": key.decode(errors="surrogateescape"), "change": change}
        elif kind == "bytes":
            yield {"key": base64.b64encode(key).decode(), "change": change}
        elif key == SCHEMA_KEY:
            yield {"schema": True, "change": change}
        else:
            table, values = decode_key(key)
            told = [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in values]
            yield {"table": table, "key": told, "change": change}
