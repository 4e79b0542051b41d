"""Garbage collection: what no version within the promise needs any more is removed, beside publishers and pullers at work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from publisher.commit import GRACE, check_keep
from publisher.published import StoreFetcher, read_head
from puller.errors import HeadwaterError, Invalid, NotFound, Refused, SecretError
from puller.progress import Progress, silent
from puller.secret import unlock
from puller.stores.base import COLLECTED, MARK, TEMPORARY, Listed, Store, Token, read_mark
from puller.tree import Reader, walk
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.graph import Graph, Node
from puller.wire.head import HEAD, Head, archive_path, parse_head

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

BATCH = 1000
"""Files that are removed on the strength of one reading of HEAD."""
KEEP = 7 * 24 * 3600
"""Seconds for which a superseded version can be pulled, where nothing else is said."""


@dataclass
class Outcome:
    """What a collection did. Sizes are in stored bytes; `missing` are files that a superseded version lacked already."""

    head: Head
    oldest: int
    """The oldest version of HEAD's epoch that can still be pulled."""
    heads_kept: int = 0
    heads_removed: int = 0
    files_kept: int = 0
    bytes_kept: int = 0
    files_young: int = 0
    """Files that nothing names, written too short a while ago to be removed."""
    bytes_young: int = 0
    files_removed: int = 0
    bytes_removed: int = 0
    unfinished_removed: int = 0
    missing: list[str] = field(default_factory=list)


class Archived(NamedTuple):
    """A superseded HEAD's place, its file's size and time, and the time from which its age counts."""

    epoch: int
    version: int
    size: int
    written: float
    superseded: float

    @property
    def path(self) -> str:
        """Where its bytes lie."""
        return archive_path(self.epoch, self.version)


def collect(
    store: Store,
    pool: ThreadPoolExecutor,
    *,
    keep: float | None = None,
    keep_versions: int = 1,
    dry_run: bool = False,
    secret: str | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Remove what neither HEAD nor a superseded HEAD within the promise reaches, if it was not written within the grace.

    The promise holds for versions that were superseded less than `keep` seconds ago (None: what HEAD says, or a week; at
    least the grace), by the store's clock, and for the newest `keep_versions` superseded ones in any case. Of versions
    outside it the archived HEADs go first, then what only they reach. Memory: the SHA-256 of each file that is kept. Key
    sets stay. Of an encrypted dataset whose `secret` is not at hand, all files are read, for what they name in the clear.

    Raises UsageError for a `keep` below the grace; NotFound without a dataset; Refused for a mirror that is being written;
    Invalid, and removes nothing, where a file is damaged, so that it cannot be told what it names.
    """
    head = read_head(store)[0]
    if head is None:
        raise _absent(store)
    check_keep(keep)
    if keep is None:
        keep = max(head.keep or KEEP, GRACE)
    return _Collection(store, pool, keep, keep_versions, dry_run, _graph(head, secret), progress).run()


def _graph(head: Head, secret: str | None) -> Graph:
    try:
        return Graph(unlock(head, secret)[1])
    except SecretError:
        if secret is not None:
            raise
        return Graph()


class _Collection:
    def __init__(
        self,
        store: Store,
        pool: ThreadPoolExecutor,
        keep: float,
        least: int,
        dry_run: bool,
        graph: Graph,
        progress: Progress,
    ) -> None:
        self.store = store
        self.graph = graph
        self.reader = Reader(StoreFetcher(store), pool)
        self.keep = keep
        self.least = least
        self.dry_run = dry_run
        self.progress = progress
        self.named: dict[str, set[bytes]] = {CHUNKS: set(), DIFFS: set()}
        self.walked: set[tuple[str, bytes]] = set()
        self.retained: set[str] = set()
        self.token: Token = ""
        self.marked = False
        """Whether mirrors were told that files are removed."""
        self.began = store.clock()
        self.before = self.began - GRACE
        """What was last written before this time is old enough."""

    def run(self) -> Outcome:
        self._check_mirror()
        head = self._mark_head()
        outcome = self.outcome = Outcome(head, head.version)
        expired = []
        for number, one in enumerate(self._archived(head)):  # listed after HEAD was read, so none below it is left out
            if number < self.least or one.superseded > self.began - self.keep or one.written >= self.before:
                self._retain(one)
            else:
                expired.append(Listed(one.path, one.size, one.written))
        outcome.heads_removed = len(self._remove(expired))
        for area in (DIFFS, CHUNKS):
            self._sweep(area)
        self._remove_unfinished()
        return outcome

    def _archived(self, head: Head) -> list[Archived]:
        written = max((file.written for file in self.store.files(HEAD) if file.path == HEAD), default=self.began)
        return find_archived(self.store.files("heads/"), head, written)

    def _mark_head(self) -> Head:
        """Mark what HEAD reaches. Raises Invalid if something of that is damaged or missing."""
        head, _, token = read_head(self.store)
        if head is None:
            raise _absent(self.store)
        try:
            self._mark(self.graph.roots(head), must=True)
        except NotFound as error:
            if read_head(self.store)[2] != token:
                self.walked.clear()  # of some, not all that they name was marked
                return self._mark_head()
            raise self._damaged(error) from error
        except Invalid as error:
            raise self._damaged(error) from error
        self.token = token
        return head

    def _damaged(self, error: HeadwaterError) -> Invalid:
        return Invalid(
            f"the dataset in {self.store.where} is damaged: {error}; what else is in use cannot be told, so nothing more was "
            "removed. Restore that file (a mirror or a backup has it under the same name): `publisher fsck` finds all"
        )

    def _retain(self, one: Archived) -> None:
        """Mark what a superseded HEAD reaches, as far as it is there: some copies have no more than was promised."""
        head = self._archived_head(one.path)
        if head is None:
            return
        try:
            self._mark(self.graph.roots(head), must=False)
        except Invalid as error:
            raise self._damaged(error) from error
        self.retained.add(one.path)
        self.outcome.heads_kept += 1
        if one.epoch == self.outcome.head.epoch:
            self.outcome.oldest = min(self.outcome.oldest, one.version)

    def _archived_head(self, path: str) -> Head | None:
        try:
            return parse_head(self.store.get(path))
        except NotFound:
            return None
        except Invalid as error:
            raise self._damaged(error) from error

    def _mark(self, found: Iterable[Node], *, must: bool) -> None:
        """Mark files and all that they name; those that name others are read, many at once, on each level of a tree."""
        for node, below in walk(self.reader.pool, found, self._read, self._is_unread):
            if below is None and must:
                raise NotFound(f"there is no {node.path}, which HEAD needs")
            if below is None:
                self.outcome.missing.append(node.path)
                self.walked.discard((node.form, node.ref.sha256))

    def _is_unread(self, node: Node) -> bool:
        """Mark a file; say whether what it names is still to be read, in the form in which it is named."""
        self.named[node.area].add(node.ref.sha256)
        if not node.leads or (node.form, node.ref.sha256) in self.walked:
            return False
        self.walked.add((node.form, node.ref.sha256))
        self.progress("mark", len(self.walked), 0)
        return True

    def _read(self, node: Node) -> list[Node] | None:
        assert node.below is not None
        try:
            return list(node.below(self.reader.stored(node.area, node.ref)))
        except NotFound:
            return None

    def _sweep(self, area: str) -> None:
        """Remove what nothing names in an area; files that have another form of name are left alone."""
        outcome = self.outcome
        unnamed: list[Listed] = []
        for file in self.store.files(f"{area}/"):
            sha256 = _sha256_of(file.path)
            if sha256 is None:
                continue
            if sha256 in self.named[area]:
                outcome.files_kept += 1
                outcome.bytes_kept += file.size
            elif file.written >= self.before:
                outcome.files_young += 1
                outcome.bytes_young += file.size
            else:
                unnamed.append(file)
            if len(unnamed) >= BATCH:
                self._remove_files(unnamed)
                unnamed = []
        self._remove_files(unnamed)

    def _remove_files(self, unnamed: list[Listed]) -> None:
        removed = self._remove(unnamed)
        self.outcome.files_removed += len(removed)
        self.outcome.bytes_removed += sum(file.size for file in removed)
        self.progress("remove", self.outcome.files_removed, 0)

    def _remove(self, files: list[Listed]) -> list[Listed]:
        """Remove files in batches, each after another look at HEAD; return those that went."""
        if self.dry_run:
            return files
        removed: list[Listed] = []
        for start in range(0, len(files), BATCH):
            self._look_again()
            batch = [file for file in files[start : start + BATCH] if self._is_unnamed(file.path)]
            gone = self._collect([file.path for file in batch])
            removed += (file for file in batch if file.path in gone)
        return removed

    def _collect(self, paths: list[str]) -> set[str]:
        """Remove files, unless a mirror is being written, which goes by what is there; the next run of one is told."""
        if not paths:
            return set()
        if not self.marked:
            self._check_mirror()
            self.store.put(MARK, COLLECTED)
            self.store.flush()
            self.marked = True
        gone = self.store.collect(paths, self.before, lambda: read_mark(self.store.get) != COLLECTED)
        if not gone:
            self._check_mirror()
        return gone

    def _check_mirror(self) -> None:
        """Raise Refused while a mirror is being written here, or if that was cut off."""
        if read_mark(self.store.get) not in (None, COLLECTED):
            raise Refused(
                f"a mirror is being written to {self.store.where}, or that was cut off; nothing more was removed. Let `puller "
                "mirror` finish, then run this again"
            )

    def _is_unnamed(self, path: str) -> bool:
        sha256 = _sha256_of(path)
        return path not in self.retained if sha256 is None else sha256 not in self.named[path.partition("/")[0]]

    def _look_again(self) -> None:
        """Mark what HEAD reaches by now, and what the versions between reached: each is within the promise."""
        if read_head(self.store)[2] == self.token:
            return
        seen = self.outcome.head
        head = self.outcome.head = self._mark_head()
        for one in self._archived(head):
            if (one.epoch, one.version) >= (seen.epoch, seen.version):
                self._retain(one)

    def _remove_unfinished(self) -> None:
        """Remove what killed publishers left half written."""
        for top in (TEMPORARY, "heads/", f"{CHUNKS}/", f"{DIFFS}/"):
            old = [
                file.path
                for file in self.store.files(top)
                if file.path.rpartition("/")[2].startswith(TEMPORARY)
                and file.path != MARK
                and file.written < self.before
            ]
            if old and not self.dry_run:
                old = list(self._collect(old))
            self.outcome.unfinished_removed += len(old)


def _absent(store: Store) -> NotFound:
    return NotFound(f"there is no dataset at {store.where}; nothing was removed")


def find_archived(listed: Iterable[Listed], head: Head, head_written: float) -> list[Archived]:
    """The superseded HEADs among the files under heads/, the newest first.

    A version was superseded by the time that its successor was superseded in turn, or that HEAD was written, if that is
    its successor: its own file may be older, if its publisher was killed before it swapped HEAD.
    """
    found = sorted((*place, file.size, file.written) for file in listed if (place := _place(file.path)) is not None)
    archived: list[Archived] = []
    superseded = head_written
    for epoch, version, size, written in reversed(found):
        if (epoch, version) < (head.epoch, head.version):
            archived.append(Archived(epoch, version, size, written, superseded))
            superseded = written
    return archived


def _place(path: str) -> tuple[int, int] | None:
    """Epoch and version of a file under heads/."""
    numbers = path.removeprefix("heads/").split("-")
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    place = int(numbers[0]), int(numbers[1])
    return place if archive_path(*place) == path else None


def _sha256_of(path: str) -> bytes | None:
    """The SHA-256 that names an immutable file, or None for other files."""
    area, _, name = path.partition("/")
    folder, _, name = name.partition("/")
    digits = name.removesuffix(".zst")
    if area not in (CHUNKS, DIFFS) or len(digits) != 64 or name != digits + ".zst" or digits[:2] != folder:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
