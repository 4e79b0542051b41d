"""A batch: puts and deletes that become one version together."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

from publisher.tables import Pending
from puller.errors import UsageError


class Owner(Protocol):
    """What a batch belongs to: it is read through it, and published by it."""

    def publish(self, batch: Batch) -> None: ...

    def get(self, key: Any, default: Any = None) -> Any: ...

    def __contains__(self, key: object) -> bool: ...


class Batch:
    """Changes that are published as one version when the `with` block ends, and not at all if it raises.

    The last change of a key counts. A batch is blind: what it puts replaces whatever is there when it is published,
    also what somebody else published since it was begun. It belongs to one thread.
    """

    def __init__(self, owner: Owner, pending: Pending, *, allow_shrink: bool) -> None:
        self.allow_shrink = allow_shrink
        self.pending = pending
        self._owner = owner
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check()
        self._open = False
        if kind is None:
            self._owner.publish(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Put a record. Raises UsageError for what the dataset's kind cannot hold."""
        self._check()
        self.pending.put(key, value)

    def __delitem__(self, key: Any) -> None:
        """Delete a record. Raises KeyError if there is none; that costs a lookup, which `discard` does without."""
        if key not in self:
            raise KeyError(key)
        self.pending.delete(key)

    def discard(self, key: Any) -> None:
        """Delete a record if there is one."""
        self._check()
        self.pending.delete(key)

    def table(self, name: str, key: list[str]) -> None:
        """Make a table with a primary key of these columns, if there is none (kind `table`).

        Raises UsageError, when the batch is published, if there is one with another key.
        """
        self._check()
        self.pending.table(name, key)

    def __getitem__(self, key: Any) -> Any:
        """What stands under a key with the changes so far. Raises KeyError if there is nothing."""
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise KeyError(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """What stands under a key with the changes so far, or `default`."""
        self._check()
        known, value = self.pending.get(key)
        if known:
            return default if value is None else value
        return self._owner.get(key, default)

    def __contains__(self, key: object) -> bool:
        self._check()
        known, value = self.pending.get(key)
        return value is not None if known else key in self._owner

    def __len__(self) -> int:
        """The number of keys that are put or deleted so far."""
        return len(self.pending)

    def _check(self) -> None:
        if not self._open:
            raise UsageError("a batch is used within its `with` block, once")
