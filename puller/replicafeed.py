"""The change feed of a replica: what its pulls change, with old values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from puller.errors import Distrust, Moved, Untrusted
from puller.events import Watch, form_at
from puller.feed import Feed
from puller.parts import WHOLE
from puller.transitions import BATCH, Again, Event, Position
from puller.wire.rows import SCHEMA_KEY

if TYPE_CHECKING:
    from puller.replica import Replica
    from puller.targets.base import State


class ReplicaFeed(Feed):
    """The changes of a dataset, in order, with old values. `puller.Replica.feed` makes it.

    Where the replica holds what was told last, it is pulled, and what that changes is told. Otherwise (another one pulled it,
    an earlier process went down before it acknowledged) changes come from the host's diffs once, without old values; or
    all records anew.
    """

    def __init__(
        self,
        replica: Replica,
        state: str | None,
        *,
        anew: bool,
        follow: bool,
        interval: float | None,
        trust: Sequence[str],
        secret: str | None,
        allow_expired: bool,
        warn: Callable[[str], object],
    ) -> None:
        super().__init__(
            replica.url,
            state=state,
            follow=follow,
            interval=interval,
            trust=trust,
            secret=secret,
            mirrors=replica.mirrors,
            allow_expired=allow_expired,
            warn=warn,
        )
        self._replica = replica
        self._allow_expired = allow_expired
        if self._told is None and not anew:
            position, held = self._held()
            if position is not None and held is not None:
                self._note_told(position, b"", held.parts)

    def _held(self) -> tuple[Position | None, State | None]:
        """The position that the replica holds, and what it remembers."""
        with self._replica._reading() as reading:
            state = reading.state
            return (None if state is None else state.position), state

    def _begin(self) -> Iterator[list[Event]] | None:
        try:
            told = self._told
            if told is not None and self._held()[0] == told and self._tells_what_is_held():
                return self._watched(told)
            with self._replica.pulled(watched=False, allow_expired=self._allow_expired) as (outcome, _):
                self._note(outcome.notes)
            return self._all() if told is None or not self._tells_what_is_held() else self._caught_up(told)
        except Moved as error:
            raise Again(str(error)) from error

    def _tells_what_is_held(self) -> bool:
        """Whether the replica holds the parts that were told of; else all records are told anew."""
        _, state = self._held()
        self._next_parts = WHOLE if state is None else state.parts
        return self._parts == self._next_parts

    def _note(self, notes: list[str]) -> None:
        for note in notes:
            self._warn(note)

    def _watched(self, told: Position) -> Iterator[list[Event]] | None:
        """Pull, and tell what that changes; None: nothing."""
        with ExitStack() as stack:
            pulled = self._replica.pulled(watched=True, allow_expired=self._allow_expired)
            outcome, watch = stack.enter_context(pulled)
            self._note(outcome.notes)
            self._learn()
            assert watch is not None
            if outcome.before != told or not self._tells_what_is_held():
                raise Again("another puller changed the replica in the meantime, or other parts are held now")
            if outcome.after == told:
                return None
            return self._changes(stack.pop_all(), watch, told, outcome.after)

    def _changes(self, stack: ExitStack, watch: Watch, since: Position, position: Position) -> Iterator[list[Event]]:
        with stack:
            changes = watch.changes(position)
            try:
                self._next_schema = self._schema_at(position)
                while batch := [Event("change", since, position, *change) for change in islice(changes, BATCH)]:
                    yield batch
            except Moved as error:
                raise Again(str(error)) from error
            yield [Event("commit", since, position)]

    def _schema_at(self, position: Position) -> bytes:
        with self._replica._reading() as reading:
            state = reading.state
            if state is None or state.position != position:
                raise Moved("another puller changed the replica before its changes were told")
            return (reading.get(SCHEMA_KEY) or b"") if state.kind == "table" else b""

    def _all(self) -> Iterator[list[Event]]:
        """Tell all that the replica holds."""
        try:
            with self._replica._reading() as reading:
                state = reading.state
                if state is None:
                    raise Moved("what was pulled is gone")
                self._learn()
                ends, self._next_parts = (None, state.position), state.parts
                yield [Event("reset", *ends)]
                form = form_at(reading)
                self._next_schema = (reading.get(SCHEMA_KEY) or b"") if state.kind == "table" else b""
                for keys, values in reading.runs(b"\0" if state.kind == "table" else b""):
                    for n in range(0, len(keys), BATCH):
                        part = slice(n, n + BATCH)
                        pairs = zip(
                            form.decode_keys(keys[part]), form.decode_values(keys[part], values[part]), strict=True
                        )
                        yield [Event("change", *ends, key, None, value) for key, value in pairs]
                yield [Event("commit", *ends)]
        except Moved as error:
            raise Again(str(error)) from error

    def _caught_up(self, told: Position) -> Iterator[list[Event]] | None:
        """Tell what diffs say about the time since the position that was told; where none do, all records."""
        self._learn()
        if self._look() is None:
            return None
        transition = self._host.transition(told, self._schema, self._parts)
        if transition.since is None:
            transition.close()
            return self._all()
        self._transition = transition
        return transition.batches()

    def _learn(self) -> None:
        """Believe whom the replica believes."""
        _, state = self._held()
        if state is None:
            return
        self._pace = float(state.interval) if self._interval is None else self._interval
        with self._remembering:
            known = self._memory
            if known.dataset not in ("", state.dataset):
                raise Untrusted(
                    Distrust.OTHER_DATASET,
                    f"the changes told so far are of the dataset {known.dataset!r}, the replica holds {state.dataset!r}; "
                    "begin anew with another state",
                )
            self._remember(
                msgspec.structs.replace(
                    known,
                    dataset=state.dataset,
                    kind=state.kind,
                    source=state.source,
                    encryption=state.encryption,
                    pins=state.pins,
                    seen=state.seen,
                    seen_as=state.seen_as,
                    verified=state.verified,
                )
            )
