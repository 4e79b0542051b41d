"""Texts without the passwords in the addresses that they name. Pure."""

from __future__ import annotations

import re

_PASSWORDS = re.compile(r"(?i)(\w://[^/@\s:]*):[^/\s]*@|(\b(?:ssl)?password=)[^&\s]+")


def masked(text: str) -> str:
    """A text, or an address, as it may be shown and kept."""
    if "@" not in text and "=" not in text:
        return text
    return _PASSWORDS.sub(lambda found: f"{found[1]}@" if found[1] else f"{found[2]}…", text)
