"""Texts without the passwords in the addresses that they name. Pure."""

from __future__ import annotations

import re

_PARAMETERS = re.compile(r"(?i)(\b(?:ssl)?password=)[^&\s]+")
_PASSWORDS = re.compile(
    r"""(?ix)
    ( \b postgres(?:ql)?:// [^:\s]* ) : \S* @  # a raw "/" in a password ends the authority for libpq, not for who reads on
    | ( \w:// [^/?#\s:\[]* ) : (?: [^/?#\s]* @ | (?! \d* (?: [/?#\s] | $ ) ) \S* @ )  # no port, so a password as well
    """
)


def masked(text: str) -> str:
    """A text, or an address, as it may be shown and kept. Where it is not clear how far a password goes, more is left out."""
    if "@" not in text and "=" not in text:
        return text
    return _PASSWORDS.sub(lambda found: f"{found[1] or found[2]}@", _PARAMETERS.sub(r"\1…", text))
