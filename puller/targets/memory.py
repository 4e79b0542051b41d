"""Memory as target (any kind): immutable blocks of records, swapped in one step.

Rows are kept as the bytes they came in; what they hold is checked when they are read (`puller.forms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from puller.blocks import Block, Blocks, Edit
from puller.errors import Invalid
from puller.targets.base import Changes, Check, Opening, State, check_held, count, whole
from puller.wire import files
from puller.wire import rows as wire
from puller.wire.checksum import MODULUS, Hash, record_hashes, run_sum
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run, Value
from puller.wire.rows import SCHEMA_KEY


@dataclass(frozen=True)
class Held:
    """One state of a memory target. Immutable: it can be read for as long as somebody holds it, from any thread."""

    state: State | None = None
    blocks: Blocks = field(default_factory=Blocks)
    lasting = True

    def get(self, key: bytes) -> bytes | None:
        return self.blocks.get(key)

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[Block]:
        return self.blocks.runs(lower, upper)


class MemoryTarget:
    """Keeps a dataset in this process's memory. While a new state is made the old one is there, and both share blocks."""

    kinds: tuple[str, ...] = ("files", "table", "bytes")
    gives_values = True
    partial = None

    def __init__(self) -> None:
        self.where = "memory"
        self.held = Held()

    def state(self) -> State | None:
        return self.held.state

    def is_there(self) -> bool:
        return True

    def remember(self, state: State, was: State) -> None:
        held = self.held
        if held.state is not None and held.state.mark == was.mark:
            self.held = replace(held, state=state)

    @contextmanager
    def reading(self) -> Iterator[Held]:
        yield self.held

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[_Writer]:
        check_held(self.held.state, opening, self.where)
        yield _Writer(self, opening)

    def records(self) -> Iterator[Run]:
        for keys, values in self.held.runs():
            yield keys, list(values)

    def check(self) -> Check:
        check = Check(0, self.held.blocks.records)
        for keys, values in self.held.runs():
            check.checksum = (check.checksum + run_sum(keys, values)) % MODULUS
        return check

    def close(self) -> None:
        """What is held lives as long as the target does."""


class _Writer:
    def __init__(self, target: MemoryTarget, opening: Opening) -> None:
        self._target = target
        self._opening = opening
        self._old = Blocks() if opening.replace else target.held.blocks
        self._edit = Edit(self._old)
        self._changes = Changes()
        self._paths: list[bytes] = []

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        count(self._changes, keys, values, opening=self._opening)
        plain = whole(self._opening, keys, values)
        if self._opening.kind == "files":
            files.check_records(keys, plain)
            self._paths += [key for key, value in zip(keys, plain, strict=True) if value is not None]
        if self._opening.kind == "table" and keys and keys[0] == SCHEMA_KEY:
            if plain[0] is None:
                raise Invalid("the dataset deletes its schema")
            wire.decode_schema(plain[0])
        if self._opening.replace:
            self._edit.append(keys, plain)  # type: ignore[arg-type]
            return [None] * len(keys)
        return record_hashes(keys, self._edit.put(keys, plain))

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        bounds = [(SCHEMA_KEY, b"\0"), (b"\0", None)] if self._opening.kind == "table" else [(b"", None)]
        for lower, upper in bounds:
            for keys, values in self._old.runs(lower, upper):
                yield keys, record_hashes(keys, values)  # type: ignore[misc]

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        found = map(self._old.get, keys)
        return [value if value is not None and len(value) <= MAX_INLINE else None for value in found]

    def overwrites(self) -> list[str]:
        return []

    def commit(self, state: State) -> Changes:
        blocks = self._edit.finish()
        if self._opening.kind == "table" and blocks.records and blocks.get(SCHEMA_KEY) is None:
            raise Invalid("the dataset has rows, but no schema")
        self._check_shape(blocks)
        self._target.held = Held(state, blocks)
        return self._changes

    def _check_shape(self, blocks: Blocks) -> None:
        """Raise Invalid if a path that was put is another's parent, or lies below another (SPEC 8.1)."""
        checked: set[bytes] = set()
        for path in self._paths:
            below = None if self._opening.replace else next(blocks.runs(path + b"/", path + b"0"), None)
            above = set(files.parents(path)) - checked
            checked |= above
            if below is not None or any(blocks.get(parent) is not None for parent in above):
                raise Invalid(f"the dataset has both a path and paths below it ({path.decode()}); nothing was changed")
