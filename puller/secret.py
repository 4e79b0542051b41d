"""Where the secrets of encrypted datasets are kept and found, and opening the HEADs of these datasets (SPEC 11)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from puller.errors import Invalid, SecretError
from puller.wire.note import is_private

if TYPE_CHECKING:
    from puller.wire.cipher import Cipher, Secret
    from puller.wire.head import Head

VARIABLE = "HEADWATER_SECRET"


def keys_folder() -> str:
    """Where keys are kept: `headwater/keys` in $XDG_CONFIG_HOME, if that is absolute, or in ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.config")
    return os.path.join(base, "headwater", "keys")


def secret_path(name: str, id_: str) -> str:
    """Where the secret of a dataset is kept that was made on this machine."""
    return os.path.join(keys_folder(), f"{name}+{id_}.secret")


def given_secret(secret: str | None) -> Secret | None:
    """The secret that the user named: its text, or the file that it is in. Raises SecretError."""
    from puller.wire.cipher import is_secret_text

    if secret is None:
        return None
    if is_private(secret) and not is_secret_text(secret):
        raise SecretError("what was given is a private key, not the secret of a dataset; nothing was changed")
    return _parsed(secret, "the secret") if is_secret_text(secret) else _from_file(secret)


def variable_secret() -> Secret | None:
    """The secret in the environment. Raises SecretError."""
    text = os.environ.get(VARIABLE)
    return _parsed(text, VARIABLE) if text else None


def unlock(head: Head, secret: str | None) -> tuple[Head, Cipher | None]:
    """`head`, opened where the dataset is encrypted, and the cipher for its files.

    `secret` is what the user named: the text of a secret, or the file that it is in. Otherwise it is looked for in
    $HEADWATER_SECRET and in the user's keys folder. Raises SecretError where the right one is not found, and where one
    was given for a dataset that is not encrypted; Corrupt where HEAD was not made by somebody who has the secret.
    """
    if head.encryption is None:
        if secret is not None or os.environ.get(VARIABLE):
            _refuse_plain(head, given_secret(secret))
        return head, None
    from puller.wire.cipher import Cipher

    cipher = Cipher(_find(head.name, head.encryption, secret))
    return cipher.unseal(head), cipher


def _refuse_plain(head: Head, given: Secret | None) -> None:
    """Refuse a dataset that is not encrypted although there is a secret for it: somebody may have put it in its place."""
    found = given or variable_secret()
    if found is not None and (given is not None or found.name == head.name):
        raise SecretError(
            f"a secret of {found.name!r} was given, but the dataset {head.name!r} that is served is not encrypted; nothing of "
            "it was used. If that is right, leave the secret out"
        )


def _find(name: str, id_: str, secret: str | None) -> Secret:
    given = given_secret(secret)
    if given is not None:
        if (given.name, given.id) != (name, id_):
            raise SecretError(
                f"the dataset {name!r} is encrypted with the secret {id_}; the one that was given is {given.id} of "
                f"{given.name!r}; nothing was changed"
            )
        return given
    variable = variable_secret()
    if variable is not None and (variable.name, variable.id) == (name, id_):
        return variable
    path = secret_path(name, id_)
    if os.path.lexists(path):
        kept = _from_file(path)
        if (kept.name, kept.id) == (name, id_):
            return kept
    other = "" if variable is None else f" ({VARIABLE} holds {variable.id} of {variable.name!r})"
    raise SecretError(
        f"the dataset {name!r} is encrypted with the secret {id_}, which is not at hand{other}; nothing was changed. Give it "
        f"with --secret FILE or in {VARIABLE}, or put its file at {path}"
    )


def _from_file(path: str) -> Secret:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(1024)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SecretError(f"the secret in {path} cannot be read: {reason}; nothing was changed") from error
    return _parsed(text, path)


def _parsed(text: str, where: str) -> Secret:
    from puller.wire.cipher import parse_secret

    try:
        return parse_secret(text)
    except Invalid as error:
        raise SecretError(f"{where}: {error}; nothing was changed") from error
