"""A model of committing and collecting (puller/SPEC.md 3, publisher/commit.py, publisher/gc.py, puller/stores/s3.py).

It is explored exhaustively.

A state is everything that publishers, a collector, a puller and the store know at one moment. `explore` visits all states
that can be reached, breadth first, each once, and returns the first way into one that breaks a promise, or None.

What is abstracted: a dataset is one or two chunks, each with one of a few values; a chunk's file is named by its value, so
equal content means the same file. A HEAD names the files of its chunks. Diffs and logs are files like any others. Time is
counted in ticks, as ages up to a limit, so that it may go on for ever. A process that is killed is one that takes no further
step, so each state is also that of a crash there; whoever runs again after a crash is a further publisher. Bounds: the
publishers' intents, the collections, the pulls, what is sent again, and how many ticks a collection takes.

A folder has a lock: a file's age is looked at in the moment it is removed. A bucket has none: who collects says so in a file,
lists once more, and removes by that listing; what is sent may arrive late; publishers that put what was there before ask
before they swap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

GRACE = 2
"""Ticks for which a file that nothing names is kept."""
HALF = GRACE // 2
"""Ticks after which a publisher gives up; for as long, at most, a swap is on its way."""
KEEP = 2
"""Ticks for which a superseded HEAD can be pulled."""
CACHE = 1
"""Ticks for which a cache serves a superseded HEAD."""
SLOW = 1
"""Ticks that a collection may take."""
HOLD = 2
"""Ticks after which nobody waits for a collector that said it removes files: it sends nothing after SLOW, half of that."""
OLD = GRACE + SLOW + 1
"""Ages from here on are all alike."""
ABSENT = -1

READ, SOURCE, PUT, FLUSH, ARCHIVE, SWAP, RESOLVE, LATE_ARCHIVE, DONE, OFF = range(10)
LIST_HEADS, READ_LATE, REMOVE_HEADS, LIST_FILES, LOOK, SAY, LIST_AGAIN, DELETE, END = range(9)

MUTATIONS = (
    "head_not_read_again",
    "no_grace",
    "reuses_what_seems_to_be_there",
    "unclear_is_lost",
    "archives_after_the_swap",
    "age_from_own_time",
    "age_from_own_archive",
    "deletes_by_the_listing",
    "never_gives_up",
    "keeps_an_old_reading",
    "swaps_without_comparing",
    "lists_before_head",
)

OF_BUCKETS = (
    "never_asks",
    "lists_before_it_says",
    "waits_and_does_not_look",
    "ends_after_an_error",
    "forgets_the_killed",
    "removes_twice",
    "takes_old_files_for_new",
    "does_not_count_sleep",
)
"""Mutations of what buckets need."""

AVOIDS = "deletes_by_the_listing, but nobody puts what has lain there for long"
"""Another protocol, for stores that cannot look at a file in the moment they remove it.

A publisher looks whether a file is there already. If it was written more than half the grace ago, it may be about to be
removed, and its content is put under another name (compressed in another way). Here value n + 2 has the content of n.
"""


class Version(NamedTuple):
    """A committed HEAD: who made it of which reading of the source, and the value of each chunk."""

    by: int
    reading: int
    chunks: tuple[int, ...]


class Publisher(NamedTuple):
    """`base` is the version whose HEAD was read, `elapsed` the ticks since, `sends` how often a swap may be sent again."""

    chunk: int
    value: int
    """The intent: a chunk's new value; ABSENT: whatever the source holds when it is read."""
    step: int = READ
    base: int = 0
    elapsed: int = 0
    sends: int = 1
    reading: int = ABSENT
    old: bool = False
    """Whether the file that it put into a bucket was there before."""


class Collector(NamedTuple):
    """`seen` is the version of the HEAD that was read last; sets are bit masks."""

    step: int
    elapsed: int
    seen: int
    marked: int = 0
    expired: int = 0
    candidates: int = 0


class Mark(NamedTuple):
    """What the file says about collecting in a bucket, and since when; `late` are removals that may still arrive, a mask."""

    running: bool
    age: int
    late: int = 0


class Pending(NamedTuple):
    """A swap on its way: it may still arrive, or never."""

    by: int
    base: int
    version: Version
    age: int


class State(NamedTuple):
    """One moment. Versions count from 1; `archive` and `superseded` have an age for each, `files` one for each name."""

    history: tuple[Version, ...]
    head_age: int
    archive: tuple[int, ...]
    own: tuple[int, ...]
    """Ages of the versions themselves, for a collector that goes by them."""
    superseded: tuple[int, ...]
    files: tuple[int, ...]
    publishers: tuple[Publisher, ...]
    pending: tuple[Pending, ...] = ()
    acknowledged: int = 0
    collector: Collector | None = None
    puller: tuple[int, int] | None = None
    """The version whose HEAD it read, and what it still has to fetch; None between two pulls."""
    pulled: int = 0
    source: int = 0
    collections: int = 1
    edits: int = 0
    pulls: int = 0
    mark: Mark | None = None


@dataclass(frozen=True)
class Bound:
    """How much happens: `intents` are (chunk, value) of the publishers, or (chunk, ABSENT) for those of a source."""

    intents: tuple[tuple[int, int], ...]
    chunks: int = 1
    values: int = 2
    collections: int = 1
    edits: int = 0
    pulls: int = 0
    sends: int = 1
    bucket: bool = False


def explore(bound: Bound, mutation: str | None = None, most: int | None = None) -> tuple[int, list[str] | None]:
    """The number of states, and the steps into the first that breaks a promise with what it breaks, or None."""
    assert mutation in (None, AVOIDS, *MUTATIONS, *OF_BUCKETS)
    model = _Model(bound, mutation)
    first = model.first()
    came: dict[State, tuple[State, str] | None] = {first: None}
    frontier = [first]
    while frontier:
        following: list[State] = []
        for state in frontier:
            for step, after in model.steps(state):
                broken = after if isinstance(after, str) else None
                if isinstance(after, State):
                    after = model.canonical(after)
                    if after in came:
                        continue
                    came[after] = state, step
                    broken = model.broken(after)
                    following.append(after)
                if broken is not None:
                    return len(came), [*_way(came, state), step, broken]
            if most is not None and len(came) > most:
                raise AssertionError(f"over {most} states")
        frontier = following
    return len(came), None


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps: list[str] = []
    before = came[state]
    while before is not None:
        steps.append(before[1])
        before = came[before[0]]
    return steps[::-1]


Step = tuple[str, "State | str"]
"""What happens, and what comes of it: the next state, or the promise that it broke."""


def _older(age: int, limit: int = OLD) -> int:
    return age if age == ABSENT or age >= limit else age + 1


def _put(items: tuple, at: int, item: object) -> tuple:
    return (*items[:at], item, *items[at + 1 :])


class _Model:
    def __init__(self, bound: Bound, mutation: str | None) -> None:
        self.bound = bound
        self.mutation = mutation
        self.groups = [
            perm
            for perm in permutations(range(len(bound.intents)))
            if all(bound.intents[n] == bound.intents[m] for n, m in enumerate(perm))
        ]

    def first(self) -> State:
        b = self.bound
        files = tuple(0 if n % b.values == 0 else ABSENT for n in range(b.chunks * b.values))
        return State(
            history=(Version(ABSENT, 0, (0,) * b.chunks),),
            head_age=0,
            archive=(ABSENT,),
            own=(0,) if self.mutation == "age_from_own_time" else (),
            superseded=(ABSENT,),
            files=files,
            publishers=tuple(Publisher(chunk, value, sends=b.sends) for chunk, value in b.intents),
            collections=b.collections,
            edits=b.edits,
            pulls=b.pulls,
        )

    def canonical(self, state: State) -> State:
        """The least of the states that are the same but for the names of publishers with the same intent."""
        if len(self.groups) == 1:
            return state
        return min(self._renamed(state, perm) for perm in self.groups)

    def _renamed(self, state: State, perm: tuple[int, ...]) -> State:
        name = {ABSENT: ABSENT, **{old: new for new, old in enumerate(perm)}}
        return state._replace(
            history=tuple(v._replace(by=name[v.by]) for v in state.history),
            publishers=tuple(state.publishers[old] for old in perm),
            pending=tuple(
                sorted(
                    p._replace(by=name[p.by], version=p.version._replace(by=name[p.version.by])) for p in state.pending
                )
            ),
            acknowledged=sum(1 << name[n] for n in range(len(perm)) if state.acknowledged >> n & 1),
            collector=state.collector,
        )

    def names(self, version: Version) -> int:
        """The files that a HEAD names, as a mask."""
        return sum(1 << n * self.bound.values + value for n, value in enumerate(version.chunks))

    def steps(self, state: State) -> Iterator[Step]:
        if self.bound.collections or self.bound.pulls:
            yield "a tick", self._tick(state)
        if state.edits:
            yield "the source is edited", state._replace(source=state.source + 1, edits=state.edits - 1)
        for n, publisher in enumerate(state.publishers):
            if publisher.step < DONE:
                for what, after in self._publisher(state, n, publisher):
                    yield f"publisher {n}: {what}", after
        for pending in state.pending:
            rest = tuple(p for p in state.pending if p is not pending)
            yield f"a swap of publisher {pending.by} arrives late", self._swap(state._replace(pending=rest), pending)[0]
        yield from self._collector(state)
        yield from self._arrivals(state)
        yield from self._puller(state)

    def _tick(self, state: State) -> State | str:
        collector = state.collector
        if collector is not None and collector.elapsed < SLOW:
            collector = collector._replace(elapsed=collector.elapsed + 1)
        elif collector is not None and not (self.mutation == "does_not_count_sleep" and collector.step == DELETE):
            collector = None
        return state._replace(
            head_age=_older(state.head_age, KEEP + SLOW),
            archive=tuple(map(_older, state.archive)),
            own=tuple(map(_older, state.own)),
            superseded=tuple(_older(age, KEEP) for age in state.superseded),
            files=tuple(map(_older, state.files)),
            publishers=tuple(
                p._replace(elapsed=min(p.elapsed + 1, HALF + 1)) if READ < p.step < DONE else p
                for p in state.publishers
            ),
            pending=tuple(p._replace(age=p.age + 1) for p in state.pending if p.age < HALF),
            collector=collector,
            mark=self._older_mark(state.mark),
        )

    def _older_mark(self, mark: Mark | None) -> Mark | None:
        if mark is None or mark.age > HOLD + HALF:
            return mark
        return mark._replace(age=mark.age + 1, late=mark.late if mark.age + 1 <= HOLD else 0)

    # Publishers

    def _with(self, state: State, n: int, publisher: Publisher, step: int) -> State:
        """The state with a publisher at another step; what no longer matters of it is forgotten."""
        if step >= DONE:
            publisher = publisher._replace(base=0, elapsed=0, sends=0, reading=ABSENT, old=False)
        return state._replace(publishers=_put(state.publishers, n, publisher._replace(step=step)))

    def _publisher(self, state: State, n: int, p: Publisher) -> Iterator[Step]:
        if p.step == READ:
            p = p._replace(base=len(state.history), elapsed=0, sends=self.bound.sends)
            p = p._replace(reading=ABSENT) if self.mutation == AVOIDS else p
            keeps = self.mutation == "keeps_an_old_reading" and p.reading != ABSENT
            yield "reads HEAD", self._with(state, n, p, SOURCE if p.value == ABSENT and not keeps else PUT)
        elif p.step == SOURCE:
            p = p._replace(reading=state.source)
            yield "reads the source", self._with(state, n, p, DONE if self._is_same(state, n, p) else PUT)
        elif p.step == PUT:
            if self._is_same(state, n, p):
                yield "has nothing to publish", self._with(state, n, p, DONE)
                return
            if self.mutation == AVOIDS and state.files[p.chunk * self.bound.values + p.value] > HALF:
                p = p._replace(reading=p.value + 2)
                if state.files[p.chunk * self.bound.values + p.reading] > HALF:
                    yield "finds no name", self._with(state, n, p, OFF)
                    return
            name = p.chunk * self.bound.values + self._value(p)
            there = state.files[name] != ABSENT
            p = p._replace(old=there and self.bound.bucket and self.mutation != "takes_old_files_for_new")
            if not there or self.mutation != "reuses_what_seems_to_be_there":
                state = state._replace(files=_put(state.files, name, 0))
            step = SWAP if self.mutation == "archives_after_the_swap" else ARCHIVE
            step = FLUSH if self.bound.bucket and self.mutation != "never_asks" else step
            yield f"puts file {name}", self._with(state, n, p, step)
        elif p.step == FLUSH:
            yield from self._flush(state, n, p)
        elif p.step in (ARCHIVE, LATE_ARCHIVE):
            if state.archive[p.base - 1] == ABSENT and p.base <= len(state.history):
                state = state._replace(archive=_put(state.archive, p.base - 1, 0))
            if p.step == ARCHIVE:
                yield f"archives HEAD {p.base}", self._with(state, n, p, SWAP)
            else:
                yield f"archives HEAD {p.base}", self._acknowledge(state, n, p)
        elif p.step == SWAP:
            yield from self._sends(state, n, p)
        elif p.step == RESOLVE:
            yield "reads what became of its swap", self._resolve(state, n, p)

    def _flush(self, state: State, n: int, p: Publisher) -> Iterator[Step]:
        """Ask whether files are being removed, or were since HEAD was read; what was new when it was put is no old file."""
        mark = state.mark
        if not p.old:
            yield "may swap", self._with(state, n, p, ARCHIVE)
            return
        if mark is not None and mark.running and mark.age <= HOLD:
            return  # it waits
        held = HOLD if mark is not None and mark.running and self.mutation != "forgets_the_killed" else 0
        since = mark is not None and mark.age - held <= p.elapsed
        missing = state.files[p.chunk * self.bound.values + self._value(p)] == ABSENT
        if since and missing and self.mutation != "waits_and_does_not_look":
            yield "misses a file that it put", self._with(state, n, p, READ)
        else:
            yield "may swap", self._with(state, n, p, ARCHIVE)

    def _value(self, p: Publisher) -> int:
        """The value that a publisher puts: that of its reading, or of its intent, if need be under another name."""
        return p.value if p.reading == ABSENT else p.reading % self.bound.values

    def _is_same(self, state: State, n: int, p: Publisher) -> bool:
        """Whether there is nothing to publish."""
        before = state.history[p.base - 1].chunks[p.chunk]
        return before == self._value(p) or (self.mutation == AVOIDS and before % 2 == p.value)

    def _made(self, state: State, n: int, p: Publisher) -> Version:
        return Version(n, max(p.reading, 0), _put(state.history[p.base - 1].chunks, p.chunk, self._value(p)))

    def _sends(self, state: State, n: int, p: Publisher) -> Iterator[Step]:
        if p.elapsed > HALF and self.mutation != "never_gives_up":
            yield "gives up", self._with(state, n, p, OFF)
            return
        sent = Pending(n, p.base, self._made(state, n, p), 0)
        after, done = self._swap(state, sent)
        if isinstance(after, str):
            yield "swaps HEAD", after
        elif done:
            late = self.mutation == "archives_after_the_swap"
            yield "swaps HEAD", self._with(after, n, p, LATE_ARCHIVE) if late else self._acknowledge(after, n, p)
        else:
            yield "is told that HEAD is another", self._with(state, n, p, RESOLVE)
        waiting = state._replace(pending=tuple(sorted((*state.pending, sent))))
        yield "sends a swap and hears nothing", self._with(waiting, n, p, RESOLVE)

    def _swap(self, state: State, sent: Pending) -> tuple[State | str, bool]:
        """The state once a swap has arrived, and whether HEAD moved."""
        base = len(state.history)
        if base != sent.base and self.mutation != "swaps_without_comparing":
            return state, False
        if any(v.by == sent.by for v in state.history):
            return f"the intent of publisher {sent.by} is committed twice", True
        return (
            state._replace(
                history=(*state.history, sent.version),
                head_age=0,
                archive=(*state.archive, ABSENT),
                own=(*state.own, 0) if state.own else (),
                superseded=(*_put(state.superseded, base - 1, 0), ABSENT),
            ),
            True,
        )

    def _acknowledge(self, state: State, n: int, p: Publisher) -> State:
        return self._with(state._replace(acknowledged=state.acknowledged | 1 << n), n, p, DONE)

    def _resolve(self, state: State, n: int, p: Publisher) -> State:
        newest = len(state.history)
        if self.mutation == "unclear_is_lost":
            return self._with(state, n, p, READ)
        if newest == p.base:
            return self._with(state, n, p._replace(sends=p.sends - 1), SWAP if p.sends else OFF)
        if newest > p.base + 1 and state.archive[p.base] == ABSENT:
            return self._with(state, n, p, OFF)  # an error, never a guess
        ours = state.history[p.base].by == n
        return self._acknowledge(state, n, p) if ours else self._with(state, n, p, READ)

    # Collecting

    def _collector(self, state: State) -> Iterator[Step]:
        c = state.collector
        if c is None:
            if state.collections:
                seen = len(state.history)
                began = Collector(LIST_HEADS, 0, seen, marked=self.names(state.history[-1]))
                if self.mutation == "lists_before_head":
                    began = self._listed(state, began._replace(marked=0))._replace(step=READ_LATE)
                yield "collector: reads HEAD", state._replace(collector=began, collections=state.collections - 1)
            return
        for what, after in self._collects(state, c):
            yield f"collector: {what}", after

    def _collects(self, state: State, c: Collector) -> Iterator[Step]:
        if c.step == LIST_HEADS:
            yield "lists superseded HEADs", state._replace(collector=self._listed(state, c))
        elif c.step == READ_LATE:
            marked = c.marked | self.names(state.history[-1])
            step = REMOVE_HEADS if c.expired else LIST_FILES
            yield (
                "reads HEAD late",
                state._replace(collector=c._replace(step=step, seen=len(state.history), marked=marked)),
            )
        elif c.step == REMOVE_HEADS:
            archive = tuple(ABSENT if c.expired >> n & 1 else age for n, age in enumerate(state.archive))
            yield (
                "removes superseded HEADs",
                state._replace(archive=archive, collector=c._replace(step=LIST_FILES, expired=0)),
            )
        elif c.step == LIST_FILES:
            found = sum(1 << n for n, age in enumerate(state.files) if age > self._grace(c) and not c.marked >> n & 1)
            step = DELETE if self.mutation == "head_not_read_again" else LOOK
            yield "lists files", state._replace(collector=c._replace(step=step, candidates=found) if found else None)
        elif c.step == LOOK:
            seen = len(state.history)
            for version in state.history[c.seen - 1 :]:
                c = c._replace(marked=c.marked | self.names(version))
            step = SAY if self.bound.bucket else DELETE
            c = c._replace(seen=seen, candidates=c.candidates & ~c.marked, step=step)
            yield "reads HEAD again", state._replace(collector=c if c.candidates else None)
        elif self.bound.bucket:
            yield from self._removes(state, c)
        else:
            yield from self._deletes(state, c)

    def _removes(self, state: State, c: Collector) -> Iterator[Step]:
        """As in a bucket: say so, list once more, remove by that listing."""
        if c.step == SAY:
            after = c._replace(step=DELETE if self.mutation == "lists_before_it_says" else LIST_AGAIN)
            yield "says that it removes", state._replace(collector=after, mark=Mark(running=True, age=0))
        elif c.step == LIST_AGAIN:
            old = sum(1 << n for n, age in enumerate(state.files) if age > self._grace(c))
            yield "lists files again", state._replace(collector=c._replace(step=DELETE, candidates=c.candidates & old))
        elif c.candidates and state.mark is not None:
            name = (c.candidates & -c.candidates).bit_length() - 1
            rest = c._replace(candidates=c.candidates & ~(1 << name))
            yield (
                f"removes file {name}",
                state._replace(files=_put(state.files, name, ABSENT), collector=rest),
            )
            late = state.mark._replace(late=state.mark.late | 1 << name)
            if self.mutation == "removes_twice":
                removed = state._replace(files=_put(state.files, name, ABSENT), collector=rest, mark=late)
                yield f"removes file {name}, and sends it again", removed
            after = rest if self.mutation == "ends_after_an_error" else None
            yield f"sends a removal of file {name} and hears nothing", state._replace(collector=after, mark=late)
        else:
            mark = state.mark
            ended = mark if mark is None else mark._replace(running=False, age=0)
            yield "says that it ended", state._replace(collector=None, mark=ended)

    def _arrivals(self, state: State) -> Iterator[Step]:
        mark = state.mark
        if mark is not None and mark.late:
            name = (mark.late & -mark.late).bit_length() - 1
            yield (
                f"a removal of file {name} arrives late",
                state._replace(
                    files=_put(state.files, name, ABSENT), mark=mark._replace(late=mark.late & ~(1 << name))
                ),
            )

    def _deletes(self, state: State, c: Collector) -> Iterator[Step]:
        name = (c.candidates & -c.candidates).bit_length() - 1
        rest = c.candidates & ~(1 << name)
        old = state.files[name] > self._grace(c) or self.mutation in ("deletes_by_the_listing", AVOIDS)
        files = _put(state.files, name, ABSENT) if old else state.files
        step = DELETE if self.mutation == "head_not_read_again" else LOOK
        after = c._replace(step=step, candidates=rest) if rest else None
        yield f"removes file {name}", state._replace(files=files, collector=after)

    def _listed(self, state: State, c: Collector) -> Collector:
        """What the collector knows of superseded HEADs: those within the promise are marked, others expired."""
        marked, expired = c.marked, 0
        written = state.head_age
        for number in range(c.seen - 2, -1, -1):
            age = state.archive[number]
            if age == ABSENT:
                continue
            counted, written = written, age
            if self.mutation == "age_from_own_time":
                counted = state.own[number]
            elif self.mutation == "age_from_own_archive":
                counted = age
            if counted < KEEP + c.elapsed:
                marked |= self.names(state.history[number])
            else:
                expired |= 1 << number
        return c._replace(step=REMOVE_HEADS if expired else LIST_FILES, marked=marked, expired=expired)

    def _grace(self, c: Collector) -> int:
        """What is older than this now was written before the grace when the collection began."""
        return ABSENT if self.mutation == "no_grace" else GRACE + c.elapsed

    # Pulling

    def _puller(self, state: State) -> Iterator[Step]:
        if state.puller is None:
            if state.pulls:
                yield from (
                    (f"the puller reads HEAD {v}", after)
                    for v, after in self._reads(state._replace(pulls=state.pulls - 1))
                )
            return
        version, needed = state.puller
        name = (needed & -needed).bit_length() - 1
        if state.files[name] != ABSENT:
            rest = needed & ~(1 << name)
            yield (
                f"the puller fetches file {name}",
                state._replace(puller=(version, rest) if rest else None, pulled=version),
            )
            return
        for again, after in self._reads(state):
            if again == version:
                yield f"the puller finds no file {name}", f"the puller cannot go on: HEAD {version} lacks file {name}"
            else:
                yield f"the puller reads HEAD {again} again", after

    def _reads(self, state: State) -> Iterator[tuple[int, State]]:
        """Each HEAD that a cache may serve: the newest, or one that was superseded not long ago, none older than before."""
        newest = len(state.history)
        for version in range(max(state.pulled, 1), newest + 1):
            if version == newest or 0 <= state.superseded[version - 1] <= CACHE:
                yield version, state._replace(puller=(version, self.names(state.history[version - 1])))

    # Promises

    def broken(self, state: State) -> str | None:
        """The promise that a state breaks, or None."""
        newest = len(state.history)
        for number, version in enumerate(state.history, 1):
            if number < newest and state.superseded[number - 1] >= KEEP:
                continue
            names = self.names(version)
            for name, age in enumerate(state.files):
                if age == ABSENT and names >> name & 1:
                    which = (
                        "HEAD" if number == newest else f"HEAD {number}, superseded {state.superseded[number - 1]} ago,"
                    )
                    return f"{which} names file {name}, which is missing"
            if number < newest and state.archive[number - 1] == ABSENT:
                return f"HEAD {number} was superseded, and is not archived"
        made = {version.by for version in state.history}
        for n in range(len(state.publishers)):
            if state.acknowledged >> n & 1 and n not in made:
                return f"the commit of publisher {n} is lost"
        readings = [version.reading for version in state.history]
        if self.bound.edits and readings != sorted(readings):
            return "an old reading of the source was published over a newer one"
        return None
