"""How work that takes long says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much, in bytes (0: unknown)."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Says nothing."""
