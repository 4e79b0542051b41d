"""Large values: each version of one reads back exactly, costs about what changed, and stays cheap for fresh readers."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher import earlier, large
from publisher.build import Sink
from publisher.earlier import Earlier
from publisher.published import StoreFetcher
from puller.errors import Corrupt, Stale
from puller.fetch import Check
from puller.plan import REQUEST_COST
from puller.targets.base import Opening
from puller.targets.staging import Stager
from puller.tree import Reader
from puller.wire.checksum import record_hash
from puller.wire.codec import CHUNKS
from puller.wire.nodes import MAX_NESTING, Large, Piece, check_large_value
from tests.unit.test_build import Memory

KEY = b"big"
WORDS = [bytes(random.Random(n).choices(b"abcdefghijklmnopqrstuvwxyz ", k=7)) for n in range(5000)]


def text(seed: int, size: int) -> bytes:
    """Bytes that zstd makes about three times smaller, and that hardly repeat."""
    r = random.Random(seed)
    return b"".join(r.choices(WORDS, k=size // 7 + 1))[:size]


class Dataset:
    """One value in a store, version after version."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.store = Memory()
        self.reader = Reader(StoreFetcher(self.store), pool)
        self.value: Large | None = None
        self.content = b""
        self.held: dict[bytes, bytes] = {}

    def publish(self, content: bytes) -> large.Stored:
        before = self.store.written
        sink = Sink(self.store, CHUNKS, None)
        found = None if self.value is None else Earlier(self.value, self.reader, sink, self.pool)
        stored = large.put_stream(KEY, b"", io.BytesIO(content), sink, self.pool, found)
        assert isinstance(stored.value, Large)
        check_large_value(stored.value)
        self.content, self.value, self.written = content, stored.value, self.store.written - before
        return stored

    def fetched(self, held: dict[bytes, bytes] | None = None) -> tuple[int, int]:
        """Read the value back, from nothing or with pieces that are held; return the files and bytes it took."""
        seen: set[bytes] = set()
        fetcher = StoreFetcher(self.store)
        get = fetcher.fetch

        def once(path: str, size: int, check: Check | None = None) -> bytes:
            if path in seen:  # a puller keeps what it fetched
                return self.store.get(path)
            seen.add(path)
            return get(path, size, check)

        fetcher.fetch = once
        reader = Reader(fetcher, self.pool)
        parts = reader.large(KEY, self.value, None if held is None else lambda check, raw: held.get(check))
        assert b"".join(parts) == self.content
        return fetcher.requests, fetcher.received

    def follow(self) -> tuple[int, int]:
        """What it takes a reader that holds the version it followed last."""
        cost = self.fetched(self.held)
        parts = self.reader.large(KEY, self.value)
        self.held = {xxhash.xxh3_128_digest(part): part for part in parts}
        return cost


@contextmanager
def small_pieces(least: int = 32 << 10):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "AVERAGE", 2 * least)
        patch.setattr(large, "LEAST", least)
        patch.setattr(large, "MOST", 4 * least)
        yield


@pytest.fixture
def dataset():
    with ThreadPoolExecutor(2) as pool, small_pieces():
        yield Dataset(pool)


def overwritten(content: bytes, seed: int, times: int, size: int = 40) -> bytes:
    """The content with some bytes changed in place, here and there."""
    r = random.Random(seed)
    data = bytearray(content)
    for _ in range(times):
        at = r.randrange(len(data) - size)
        data[at : at + size] = text(r.random(), size)
    return bytes(data)


EDIT = st.tuples(
    st.sampled_from(["insert", "delete", "overwrite", "move", "many"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([1, 100, 5_000, 90_000, 400_000]),
)


def edited(content: bytes, edit: tuple[str, float, float, int], seed: int) -> bytes:
    kind, where, to, size = edit
    at = int(where * len(content))
    if kind == "insert":
        return content[:at] + text(seed, size) + content[at:]
    if kind == "overwrite":
        return content[:at] + text(seed, size) + content[at + size :]
    if kind == "many":
        return overwritten(content, seed, min(size, 500))
    rest = content[:at] + content[at + size :]
    if kind == "delete":
        return rest if len(rest) > 1 << 20 else content
    at = int(to * len(rest))
    return rest[:at] + content[int(where * len(content)) :][:size] + rest[at:]


@settings(deadline=None, max_examples=8)
@given(st.lists(st.lists(EDIT, min_size=1, max_size=3), min_size=3, max_size=5), st.integers(0, 99))
def test_any_edits_read_back(versions, seed):
    with ThreadPoolExecutor(2) as pool, small_pieces():
        dataset = Dataset(pool)
        dataset.publish(text(seed, 1_600_000))
        dataset.follow()
        content = dataset.content
        for number, edits in enumerate(versions):
            for edit in edits:
                content = edited(content, edit, 100 * seed + number)
            stored = dataset.publish(content)
            assert stored.value.sha256 == hashlib.sha256(content).digest()
            assert stored.value.record_hash == record_hash(KEY, content)
            fetched = dataset.follow()
            assert dataset.fetched()[1] >= fetched[1]
            assert fetched == stored.cost


def test_what_did_not_change_is_not_put_again(dataset):
    content = text(1, 3_000_000)
    dataset.publish(content)
    before = {piece.sha256 for piece in dataset.reader.pieces(dataset.value)}
    dataset.publish(content[:1_000_000] + b"inserted" + content[1_000_000:])
    after = {piece.sha256 for piece in dataset.reader.pieces(dataset.value)}
    assert len(after - before) <= 2
    assert dataset.written < 4000


@pytest.mark.parametrize("kind", ["in place", "inserted", "deleted", "appended", "grown", "moved"])
def test_changes_everywhere_cost_what_changed(dataset, kind):
    """No piece stays the same, so that each has to be found by what is left in it."""
    content = text(2, 4_000_000)
    dataset.publish(content)
    plain, checks = dataset.written, {piece.check for piece in dataset.reader.pieces(dataset.value)}
    changed = overwritten(content, 3, 1000)
    block = text(4, 500_000)
    changed = {
        "in place": lambda: changed,
        "inserted": lambda: changed[:1_000_000] + block + changed[1_000_000:],
        "deleted": lambda: changed[:1_000_000] + changed[1_500_000:],
        "appended": lambda: changed + block,
        "grown": lambda: b"".join(changed[n : n + 5000] + text(n, 300) for n in range(0, len(changed), 5000)),
        "moved": lambda: changed[2_000_000:2_300_000] + changed[:2_000_000] + changed[2_300_000:],
    }[kind]()
    dataset.publish(changed)
    new = {"inserted": len(block), "appended": len(block), "grown": 240_000}.get(kind, 0)
    assert not {p.check for p in dataset.reader.pieces(dataset.value)} & checks
    assert dataset.written < 1.15 * plain * (new / len(content)) + 0.12 * plain
    assert dataset.fetched()[1] <= plain + dataset.written


def test_followers_fetch_the_changes_and_fresh_readers_not_much_more_than_the_value(dataset):
    content = text(5, 2_000_000)
    dataset.publish(content)
    plain_files, plain = dataset.fetched()
    dataset.follow()
    written = []
    for version in range(16):
        content = overwritten(content, version, 600)
        dataset.publish(content)
        written.append(dataset.written)
        _, size = dataset.follow()
        assert size < 0.08 * plain
        fresh_files, fresh = dataset.fetched()
        assert fresh <= 2 * plain
        assert fresh_files <= (3 + earlier.FEW // REQUEST_COST) * plain_files
        for piece in dataset.reader.pieces(dataset.value):
            assert earlier._height(piece) <= MAX_NESTING
    assert max(written) > 4 * min(written)  # now and then, pieces are written anew; followers do not notice
    assert sum(written) < 4 * plain


def test_chains_end_where_the_format_ends(dataset, monkeypatch):
    monkeypatch.setattr(earlier, "FEW", 1 << 40)
    content = text(6, 1_200_000)
    dataset.publish(content)
    heights = []
    for version in range(20):
        content = overwritten(content, version, 30)
        dataset.publish(content)
        dataset.fetched()
        heights.append(max(map(earlier._height, dataset.reader.pieces(dataset.value))))
    assert max(heights) == MAX_NESTING


def test_incompressible_data_that_are_new_stay_plain(dataset):
    dataset.publish(random.Random(1).randbytes(1_500_000))
    dataset.publish(random.Random(2).randbytes(1_500_000))
    assert all(not piece.bases for piece in dataset.reader.pieces(dataset.value))
    assert dataset.fetched()[1] == dataset.written


def test_lists_of_pieces(dataset, monkeypatch):
    monkeypatch.setattr(large, "LIST_LEAST", 2)
    monkeypatch.setattr(large, "LIST_MOST", 5)
    monkeypatch.setattr(large, "LIST_MASK", 1)
    content = text(7, 4_000_000)
    dataset.publish(content)
    assert dataset.value.depth >= 2
    for version in range(3):
        content = overwritten(content, version, 3)
        stored = dataset.publish(content)
        assert 0 < stored.cost[1] <= dataset.written < 20_000
        dataset.fetched()


def test_long_entries_move_into_lists(dataset, monkeypatch):
    monkeypatch.setattr(large, "MAX_ENTRIES", 1500)
    content = text(8, 3_000_000)
    dataset.publish(content)
    assert dataset.value.depth == 1
    dataset.publish(overwritten(content, 1, 100))
    assert len(bytes(dataset.value.entries)) <= 1500
    dataset.fetched()


def test_what_is_held_is_not_trusted_as_a_whole(dataset):
    dataset.publish(text(9, 1_200_000))
    wrong = {piece.check: bytes(piece.raw) for piece in dataset.reader.pieces(dataset.value)}
    with pytest.raises(Stale):
        list(dataset.reader.large(KEY, dataset.value, lambda check, raw: wrong[check]))


def test_a_damaged_base_is_noticed(dataset):
    content = text(10, 1_200_000)
    dataset.publish(content)
    path = max(dataset.store.files, key=lambda p: len(dataset.store.files[p]))
    dataset.store.files[path] = dataset.store.files[path][:-1] + b"\0"
    with pytest.raises(Corrupt):
        dataset.publish(overwritten(content, 1, 100))


def test_what_held_pieces_spoil_is_fetched(dataset, tmp_path):
    content = b"f" + text(11, 1_200_000)
    dataset.publish(content)
    path = str(tmp_path / "staged").encode()
    opening = Opening("files", replace=True, time=1, large=dataset.reader.large)
    kind, parts = Stager(opening).write_large(path, KEY, dataset.value, lambda check, raw: b"f" + bytes(raw - 1))
    assert kind == b"f"
    assert (tmp_path / "staged").read_bytes() == content[1:]
    assert parts == [(piece.raw, piece.check) for piece in dataset.reader.pieces(dataset.value)]


def test_a_file_that_two_threads_want_is_fetched_once(dataset):
    dataset.publish(text(12, 1_200_000))
    ref = next(dataset.reader.pieces(dataset.value)).ref
    both = threading.Barrier(2, timeout=5)
    fetcher = StoreFetcher(dataset.store)
    get = fetcher.fetch

    def slow(path: str, size: int, check: Check | None = None) -> bytes:
        both.wait()  # the other thread is on its way
        time.sleep(0.1)
        return get(path, size, check)

    fetcher.fetch = slow
    reader = Reader(fetcher, dataset.pool)
    first = dataset.pool.submit(reader.stored, CHUNKS, ref)
    both.wait()
    assert reader.stored(CHUNKS, ref) == first.result()
    assert fetcher.requests == 1


def test_limits_of_bases():
    def piece(raw: int, *bases: Piece) -> Piece:
        return Piece(bytes(32), 9, raw, bytes(16), list(bases))

    high = piece(9)
    for _ in range(MAX_NESTING - 1):
        high = piece(9, high)
    assert earlier._fits(9, [high])
    assert not earlier._fits(9, [piece(9, high)])
    assert earlier._fits(9, [piece(1)] * 63)
    assert not earlier._fits(9, [piece(1)] * 64)
    large_ones = [piece(16 << 20)] * 3
    assert earlier._fits(16 << 20, large_ones)
    assert not earlier._fits((16 << 20) + 1, large_ones)
