"""What hosts and caches get wrong, each finding with its remedy. Probing is apart from judging, which is pure."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from puller.errors import Corrupt, HeadwaterError
from puller.fetch import open_fetcher, shown, split
from puller.heads import read_heads
from puller.wire.codec import CHUNKS, MAX_STORED, Ref, check_stored, path_of
from puller.wire.head import HEAD, MAX_HEAD, Head, parse_head

if TYPE_CHECKING:
    from puller.http import HttpFetcher, Look

OK, NOTE, PROBLEM = "ok", "note", "problem"
CLOCK = 60.0
"""Seconds that clocks may differ."""
EXPIRES_SOON = 14 * 86_400
LONG = 86_400
"""Seconds from which a lifetime of an immutable file counts as long."""
NEGATIVE = 60
"""Seconds that a "not found" may be kept."""


class Finding(NamedTuple):
    """One thing that was looked at: its name, `ok`, `note` or `problem`, what was found, and what to do about it."""

    name: str
    level: str
    text: str
    remedy: str = ""


@dataclass
class Facts:
    """What a host answered; None: not asked, or no answer. `missing` are two answers for a name that cannot exist."""

    url: str
    head: Look
    again: Look
    conditional: Look | None = None
    compressed: Look | None = None
    origin: Look | None = None
    missing: list[Look] = field(default_factory=list)
    file: Look | None = None
    part: Look | None = None
    after_part: Look | None = None
    ref: Ref | None = None
    certificate_ends: float | None = None
    now: float = 0.0


def examine(address: str) -> tuple[list[Finding], Head | None]:
    """All findings about the dataset at an address, and its HEAD. What is wrong is a finding, never an error."""
    if split(address).scheme not in ("http", "https"):
        finding, head = _readable(address)
        return [finding], head
    from puller.http import REDIRECTS, HttpFetcher

    fetcher = HttpFetcher(address)
    try:
        first = fetcher.look(HEAD, {}, MAX_HEAD + 1)
        if first.status in REDIRECTS:
            return [_redirect(fetcher.base, first)], None
        readable, head = _readable(address)
        return [readable, *([] if head is None else judge(_probe(fetcher, first, head)))], head
    except HeadwaterError as error:
        return [Finding("reachable", PROBLEM, str(error), "check the address, the host and what is in between")], None
    finally:
        fetcher.close()


def _readable(address: str) -> tuple[Finding, Head | None]:
    """Whether a puller gets HEAD and the root of the snapshot."""
    fetcher = open_fetcher(address)
    try:
        head, _ = read_heads(address, fetcher, None)[0]
        assert head is not None
        ref = head.snapshot.ref
        fetcher.fetch(path_of(CHUNKS, ref.sha256), ref.stored, lambda data: check_stored(ref, data))
    except HeadwaterError as error:
        remedy = "a puller stops here: put this right first, then ask again"
        return Finding("readable", PROBLEM, str(error), remedy), None
    finally:
        fetcher.close()
    kind = f"of kind {head.kind}" if head.kind else "encrypted"
    text = f"{head.name}, version {head.version}, {kind}; the snapshot's first file is there and sound"
    return Finding("readable", OK, text), head


def _probe(fetcher: HttpFetcher, first: Look, head: Head) -> Facts:
    facts = Facts(fetcher.base, first, fetcher.look(HEAD, {"Cache-Control": "no-cache"}, MAX_HEAD + 1))
    tag = first.headers.get("ETag")
    if tag:
        facts.conditional = fetcher.look(HEAD, {"If-None-Match": tag}, MAX_HEAD + 1)
    facts.compressed = fetcher.look(HEAD, {"Accept-Encoding": "gzip, br, zstd"}, MAX_HEAD + 1)
    facts.origin = fetcher.look(HEAD, {"Origin": "https://example.org"}, MAX_HEAD + 1)
    nobody = path_of(CHUNKS, secrets.token_bytes(32))  # a name that nothing will ever have: no real one is spoilt
    facts.missing = [fetcher.look(nobody, {}, 4096) for _ in range(2)]
    ref = head.snapshot.ref
    path, facts.ref = path_of(CHUNKS, ref.sha256), ref
    facts.file = fetcher.look(path, {}, MAX_STORED + 1)
    facts.part = fetcher.look(path, {"Range": "bytes=0-7"}, MAX_STORED + 1)
    facts.after_part = fetcher.look(path, {}, MAX_STORED + 1)
    facts.certificate_ends = _certificate_ends(fetcher.base)
    facts.now = time.time()
    return facts


def _certificate_ends(url: str) -> float | None:
    """When the host's certificate ends, in Unix seconds; None without TLS, or where a proxy is in the way."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        return None
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), timeout=10) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as secured,
        ):
            ends = (secured.getpeercert() or {}).get("notAfter")
            return float(ssl.cert_time_to_seconds(ends)) if isinstance(ends, str) else None
    except OSError:
        return None


def judge(facts: Facts) -> list[Finding]:
    """Findings from what a host answered. Pure."""
    found = [
        _tls(facts),
        _clock(facts),
        *_head_lifetime(facts),
        *_file_lifetime(facts),
        _encoding(facts),
        _tags(facts),
        _cors(facts),
        _missing(facts),
    ]
    if not any(look is not None and _encoded(look) for look in (facts.head, facts.again, facts.file)):
        found += [_lag(facts), _ranges(facts)]  # bodies that were compressed say nothing about these
    return found


def _redirect(url: str, look: Look) -> Finding:
    to = urljoin(url, look.headers.get("Location", ""))
    if urlsplit(to)[:2] == urlsplit(url)[:2]:
        text = f"HEAD is redirected to {shown(to)}; each request is made twice"
    else:
        text = f"the host redirects to another origin, {shown(to)}, where pullers do not follow"
    return Finding("redirects", PROBLEM, text, f"give pullers the final address: {shown(to).removesuffix(HEAD)}")


def _tls(facts: Facts) -> Finding:
    if urlsplit(facts.url).scheme != "https":
        text = "the address is not https: whoever is in between can see, and change, what is not signed"
        return Finding("tls", NOTE, text, "serve it over https, unless it stays within a network that is trusted")
    ends = facts.certificate_ends
    if ends is not None and ends - facts.now < EXPIRES_SOON:
        text = f"the certificate ends in {(ends - facts.now) / 86_400:.0f} days"
        return Finding("tls", PROBLEM, text, "renew it, and see to it that it is renewed by itself")
    return Finding("tls", OK, "the certificate is verified")


def _clock(facts: Facts) -> Finding:
    from puller.http import date_of

    date = date_of(facts.again.headers.get("Date", ""))
    if date is None:
        return Finding("clock", NOTE, "the host does not tell its time (no Date header)")
    off = facts.now - date - _age(facts.again)
    if abs(off) > CLOCK:
        side = "ahead of" if off > 0 else "behind"
        text = f"this machine's clock is {abs(off):.0f} s {side} the host's"
        return Finding("clock", PROBLEM, text, "set both by NTP: lifetimes in caches and of signatures count by them")
    return Finding("clock", OK, f"this machine's clock and the host's differ by {abs(off):.0f} s")


def _lag(facts: Facts) -> Finding:
    """HEAD as caches give it against HEAD asked for past them."""
    cached, fresh = _parsed(facts.head), _parsed(facts.again)
    if cached is None or fresh is None:
        return Finding("lag", NOTE, "HEAD changes its form between two requests", "look at what is in between")
    if cached.order != fresh.order:
        text = f"one request gave version {cached.version}, the next one version {fresh.version}"
        return Finding("lag", NOTE, text, "normal within HEAD's lifetime after a publish; pullers never go back")
    return Finding("lag", OK, f"HEAD is the same from caches and past them (version {fresh.version})")


def _head_lifetime(facts: Facts) -> Iterator[Finding]:
    head, control = _parsed(facts.again), _control(facts.head)
    interval = 30 if head is None else head.interval
    remedy = "send HEAD with Cache-Control: public, max-age=5, stale-while-revalidate=10, no-transform"
    seconds = _lifetime(control)
    if "immutable" in control or (seconds is not None and seconds > interval):
        text = f"caches may keep HEAD for {seconds or 0} s, longer than the {interval} s between polls"
        yield Finding("head lifetime", PROBLEM, text, remedy)
    elif seconds is None and "no-store" not in control and "no-cache" not in control:
        text = "HEAD has no lifetime (no max-age): caches keep it for as long as they think best"
        yield Finding("head lifetime", PROBLEM, text, remedy)
    else:
        yield Finding("head lifetime", OK, f"HEAD is kept for {seconds or 0} s")
    age = _age(facts.head)
    if seconds is not None and age > seconds + LONG // 24:
        text = f"a cache gave a HEAD that is {age:.0f} s old, though it may be kept for {seconds} s"
        yield Finding(
            "head age", PROBLEM, text, "let the cache go by what the host says: no minimum or default lifetime"
        )


def _file_lifetime(facts: Facts) -> Iterator[Finding]:
    if facts.file is None or facts.file.status != 200:
        return
    control = _control(facts.file)
    seconds = _lifetime(control)
    if "no-store" in control or "private" in control or seconds is None or seconds < LONG:
        kept = "for a time of their own choice" if seconds is None else f"for {seconds} s"
        if "no-store" in control or "private" in control:
            kept = "not at all"
        text = f"shared caches may keep immutable files {kept}: the host is asked for them again and again"
        remedy = "send chunks/ and diffs/ with Cache-Control: public, max-age=31536000, immutable, no-transform"
        yield Finding("file lifetime", PROBLEM, text, remedy)
    else:
        yield Finding("file lifetime", OK, f"immutable files are kept for {seconds} s")
    if "no-transform" not in control:
        text = "nothing forbids caches to change files on the way (no no-transform)"
        yield Finding("no-transform", NOTE, text, "add no-transform to Cache-Control")


def _encoding(facts: Facts) -> Finding:
    remedy = "turn compression off for HEAD, chunks/ and diffs/: the files are compressed already"
    for look, what in ((facts.head, "HEAD"), (facts.file, "an immutable file")):
        if look is not None and _encoded(look):
            text = f"{what} comes with Content-Encoding {_encoded(look)}, though it was asked for as it is"
            return Finding("compression", PROBLEM, text, remedy)
    if facts.compressed is not None and _encoded(facts.compressed):
        text = f"HEAD is compressed ({_encoded(facts.compressed)}) for whoever accepts that; pullers do not"
        return Finding("compression", NOTE, text, remedy)
    return Finding("compression", OK, "files come as they are")


def _tags(facts: Facts) -> Finding:
    if not facts.head.headers.get("ETag"):
        return Finding("etag", NOTE, "HEAD has no ETag: each poll fetches it whole", "let the host send ETags")
    if facts.conditional is not None and facts.conditional.status != 304:
        text = f"asked with its ETag, HEAD comes whole (status {facts.conditional.status}): each poll fetches it"
        return Finding(
            "etag", NOTE, text, "let all hosts behind the address make the same ETag, and pass If-None-Match on"
        )
    return Finding("etag", OK, "an unchanged HEAD is told by its ETag (304)")


def _cors(facts: Facts) -> Finding:
    if facts.origin is not None and facts.origin.headers.get("Access-Control-Allow-Origin"):
        return Finding("cors", OK, "web pages of other origins may read it")
    text = "web pages of other origins may not read it (no Access-Control-Allow-Origin); pullers do not mind"
    return Finding("cors", NOTE, text, "for readers in browsers send Access-Control-Allow-Origin: *")


def _missing(facts: Facts) -> Finding:
    """What is said of a file that is not there, and how long that is kept."""
    if not facts.missing:
        return Finding("missing files", NOTE, "not looked at")
    first, last = facts.missing[0], facts.missing[-1]
    if first.status == 200:
        text = "for a file that is not there, the host answers 200 with something else (a page of a web application?)"
        return Finding("missing files", PROBLEM, text, "let the host answer 404 below the dataset's address")
    if first.status == 403:
        text = "for a file that is not there, the host answers 403: absent and forbidden cannot be told apart"
        return Finding(
            "missing files", NOTE, text, "on S3, let readers list the bucket (s3:ListBucket); it works without, too"
        )
    if first.status not in (404, 410):
        text = f"for a file that is not there, the host answers {first.status}"
        return Finding("missing files", PROBLEM, text, "let the host answer 404")
    seconds = _lifetime(_control(first)) or 0
    if max(seconds, _age(last)) > NEGATIVE:
        text = f'caches may keep "not found" for {seconds} s: a file that is asked for too early stays away that long'
        return Finding(
            "missing files", PROBLEM, text, "let caches keep errors for a few seconds (negative TTL, error caching)"
        )
    return Finding("missing files", OK, f'"not found" is kept for at most {seconds} s')


def _ranges(facts: Facts) -> Finding:
    """Pullers ask for no ranges; others may, and a cache that takes a part for the whole harms all."""
    part, whole, after = facts.part, facts.file, facts.after_part
    if part is None or whole is None or after is None or facts.ref is None or whole.status != 200:
        return Finding("ranges", NOTE, "not looked at")
    right = {200: whole.body, 206: whole.body[:8]}.get(part.status)
    try:
        check_stored(facts.ref, after.body)
    except Corrupt:
        text = "after somebody asked for a part of a file, the host gives others something else than the whole"
        return Finding("ranges", PROBLEM, text, "do not let the cache keep partial answers under the file's name")
    if part.body != right:
        text = f"asked for 8 bytes, the host answers {part.status} with {len(part.body)} bytes that are not those"
        return Finding("ranges", NOTE, text, "pullers ask for no ranges; other programs may")
    return Finding("ranges", OK, "a part is told from the whole")


def _parsed(look: Look) -> Head | None:
    try:
        return parse_head(look.body) if look.status == 200 else None
    except HeadwaterError:
        return None


def _encoded(look: Look) -> str:
    encoding = look.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _control(look: Look) -> Mapping[str, str]:
    """The directives of Cache-Control."""
    parts = (part.strip().lower().partition("=") for part in look.headers.get("Cache-Control", "").split(","))
    return {name: value.strip('"') for name, _, value in parts if name}


def _lifetime(control: Mapping[str, str]) -> int | None:
    """Seconds that a shared cache may keep an answer."""
    value = control.get("s-maxage", control.get("max-age", ""))
    return int(value[:10]) if value.isascii() and value.isdigit() else None


def _age(look: Look) -> float:
    value = look.headers.get("Age", "")
    return float(value[:10]) if value.isascii() and value.isdigit() else 0.0


def told(findings: list[Finding]) -> str:
    """Findings for people: problems first."""
    lines = []
    for finding in sorted(findings, key=lambda one: (PROBLEM, NOTE, OK).index(one.level)):
        lines.append(f"{finding.level:<8} {finding.name}: {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<8}   → {finding.remedy}")
    return "\n".join(lines)


def problems(findings: list[Finding]) -> int:
    """How many findings are problems."""
    return sum(finding.level == PROBLEM for finding in findings)


def fields(findings: list[Finding]) -> list[dict[str, str]]:
    """Findings for programs."""
    return [finding._asdict() for finding in findings]
