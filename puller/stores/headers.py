"""What hosts are to send with a dataset's files: media types and how long caches may keep them. Pure."""

from __future__ import annotations

import re

from puller.wire.head import HEAD

MAX_AGE = 5
"""Seconds that caches may give HEAD without asking, where nothing else is set."""
IMMUTABLE = "public, max-age=31536000, immutable, no-transform"


def cache_control(path: str, max_age: int = MAX_AGE) -> str:
    """The Cache-Control of a file; `max_age` (seconds) is HEAD's."""
    if path != HEAD:
        return IMMUTABLE
    return f"public, max-age={max_age}, stale-while-revalidate={2 * max_age}, stale-if-error=3600, no-transform"


def max_age_of(cache_control: str) -> int | None:
    """The max-age in a Cache-Control, if it has one."""
    match = re.search(r"\bmax-age=(\d{1,9})\b", cache_control)
    return int(match[1]) if match else None


def content_type(path: str) -> str:
    """The Content-Type of a file: notes are text, the rest is compressed."""
    return "application/octet-stream" if path.endswith(".zst") else "text/plain; charset=utf-8"
