"""What users get wrong with the place they publish to: rights, compare-and-swap, and what the public address serves."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from publisher.published import read_head
from puller.doctor import NOTE, OK, PROBLEM, Finding, examine
from puller.errors import Conflict, FetchError, HeadwaterError, NotFound, Unavailable
from puller.stores.base import Store, Token, Unclear
from puller.wire.codec import CHUNKS, path_of
from puller.wire.head import Head


@runtime_checkable
class Telling(Protocol):
    """A store that knows more of its own to look at."""

    def findings(self) -> Iterator[Finding]:
        """Findings about the store. What it writes, it removes."""
        ...


def examine_store(store: Store, public_url: str | None = None) -> list[Finding]:
    """All findings about a store, and about the address under which it is served. What is wrong is a finding, never an error.

    Files that no dataset can have are written and removed; HEAD stays as it is.
    """
    try:
        head, data, token = read_head(store)
    except HeadwaterError as error:
        return [Finding("readable", PROBLEM, str(error), "put this right first, then ask again")]
    findings = [_dataset(store, head)]
    for name, probe in (("files", _files), ("create-only", _create_only), ("deletion", _deletion)):
        findings.append(_tried(name, lambda probe=probe: probe(store)))  # type: ignore[misc]
    if head is not None:
        time = head.time
        findings.append(_tried("compare-and-swap", lambda: _swap(store, data, token, time)))
    findings.append(_tried("conditional writes", lambda: _conditional(store)))
    if isinstance(store, Telling):
        findings += store.findings()
    if public_url is not None:
        found, public = examine(public_url)
        findings += found
        if public is not None:  # else it was said why not
            findings.append(_same(head, public, public_url))
    return findings


def _tried(name: str, probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except HeadwaterError as error:
        return Finding(name, PROBLEM, str(error), "give the publisher the right to do this, or look at the store")


def _conditional(store: Store) -> Finding:
    store.probe()
    return Finding("conditional writes", OK, "publishers cannot overwrite each other's versions")


def _dataset(store: Store, head: Head | None) -> Finding:
    if head is None:
        foreign = store.foreign()
        if foreign is None:
            return Finding("dataset", NOTE, "there is no dataset yet", "publish one; the first publish makes it")
        text = f"there is no dataset, but other things are ({foreign})"
        return Finding("dataset", PROBLEM, text, "publish to a place of its own")
    try:
        store.get(path_of(CHUNKS, head.snapshot.ref.sha256))
    except FetchError as error:
        return Finding(
            "dataset", PROBLEM, f"HEAD names a file that is not to be had: {error}", "bring it back, or publish anew"
        )
    return Finding("dataset", OK, f"{head.name}, version {head.version}, of kind {head.kind}")


def _files(store: Store) -> Finding:
    """Writing a file, and reading it back at once."""
    data = secrets.token_bytes(64)
    path = path_of(CHUNKS, hashlib.sha256(data).digest())
    store.put(path, data)
    try:
        store.flush()
        if store.get(path) != data:
            return Finding(
                "files", PROBLEM, "a file that was written reads differently", "do not publish to this store"
            )
        if path not in store.list(path[:9]):
            text = "a file that was written is not listed"
            return Finding("files", PROBLEM, text, "listing must be complete: old files are deleted by it")
    finally:
        store.delete(path)
    return Finding("files", OK, "files are written, read back and listed")


def _create_only(store: Store) -> Finding:
    path = _unused()
    try:
        if not store.create(path, b"first") or store.create(path, b"second") or store.get(path) != b"first":
            text = "a file that exists is written over, though that was forbidden"
            return Finding(
                "create-only", PROBLEM, text, "use a store with conditional writes, or publish from one place only"
            )
    finally:
        store.delete(path)
    return Finding("create-only", OK, "what exists is not written over")


def _deletion(store: Store) -> Finding:
    path = _unused()
    store.create(path, b"x")
    store.delete(path)
    try:
        store.get(path)
    except NotFound:
        return Finding("deletion", OK, "what is deleted is absent, and absence is told")
    except FetchError as error:
        text = f"absence cannot be told from a denied read: {error}"
        return Finding("deletion", PROBLEM, text, "on S3, give the publisher s3:ListBucket on the bucket")
    return Finding("deletion", PROBLEM, "what was deleted is still there", "give the publisher the right to delete")


def _swap(store: Store, data: bytes, token: Token, time: int) -> Finding:
    """A swap from a HEAD that never was must fail; where it does not, HEAD is replaced by itself."""
    refused = Finding("compare-and-swap", OK, "HEAD is replaced only by who knows it")
    try:
        store.swap_head(hashlib.sha256(secrets.token_bytes(8)).hexdigest(), data, time)
    except Conflict:
        return refused
    except Unclear as error:  # as buckets tell a refusal, too
        if isinstance(error.__cause__, Unavailable):
            raise  # no answer to the swap itself
        if store.read_head()[1] == token:
            return refused
        text = "somebody published meanwhile, so it cannot be told whether HEAD is replaced only by who knows it"
        return Finding("compare-and-swap", NOTE, text, "ask again while nobody publishes")
    text = "HEAD is replaced also by who knows another one: two publishers would undo each other's versions"
    return Finding(
        "compare-and-swap", PROBLEM, text, "use a store with conditional writes, or publish from one place only"
    )


def _unused() -> str:
    return f"heads/0-{secrets.randbelow(10**15) + 10**14}"


def _same(head: Head | None, public: Head, url: str) -> Finding:
    """What the public address serves against what the store holds."""
    if head is None or (public.name, public.epoch) != (head.name, head.epoch):
        text = f"{url} serves another dataset than the store holds"
        return Finding("public address", PROBLEM, text, "let it serve the folder or bucket that is published to")
    if public.order < head.order:
        text = f"{url} serves version {public.version}, the store holds version {head.version}"
        return Finding(
            "public address", NOTE, text, "normal for a while after a publish; if it lasts, a cache keeps HEAD too long"
        )
    if public.publish_id != head.publish_id and public.version == head.version:
        text = f"{url} serves another version {public.version} than the store holds"
        return Finding("public address", PROBLEM, text, "two stores have drifted apart: serve only one")
    return Finding("public address", OK, f"{url} serves what the store holds")
