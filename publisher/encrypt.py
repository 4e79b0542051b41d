"""The secret of a dataset that is created encrypted: made with it, and kept on this machine before HEAD names it (SPEC 11)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from publisher.keys import keep_private
from puller.errors import SecretError
from puller.secret import given_secret, secret_path, variable_secret

if TYPE_CHECKING:
    from puller.wire.cipher import Cipher
    from puller.wire.head import Head


class Locks(NamedTuple):
    """How a new dataset is encrypted, if it is; a secret that was made for it is still to be kept."""

    cipher: Cipher | None = None
    made: bool = False

    def keep(self) -> str | None:
        """Write a secret that was made, durably, readable by its owner only; return where it is.

        It is never removed again: HEAD may have been written even where that seemed to fail.
        """
        if not self.made or self.cipher is None:
            return None
        secret = self.cipher.secret
        path = secret_path(secret.name, secret.id)
        keep_private(secret.text, path, "the secret")
        return path


def new_locks(name: str, secret: str | None, *, encrypt: bool) -> Locks:
    """How to encrypt a dataset that is to be created: with the secret that was named, or is in the environment for it, or,
    where encryption was asked for, with a new one.

    Raises SecretError for a secret of another dataset.
    """
    given = given_secret(secret)
    found = given or variable_secret()
    if found is not None and found.name != name and (given is not None or encrypt):
        raise SecretError(f"the secret that was given is of {found.name!r}, not of {name!r}; nothing was written")
    if found is not None and found.name != name:
        found = None
    if found is None and not encrypt:
        return Locks()
    from puller.wire.cipher import Cipher, Secret

    return Locks(Cipher(found or Secret(name, os.urandom(32))), found is None)


def check_encrypted(head: Head, where: str, *, encrypt: bool) -> None:
    """Raise SecretError if encryption was asked for and the dataset is plain: that it is for good."""
    if encrypt and head.encryption is None:
        raise SecretError(
            f"the dataset {head.name!r} in {where} is not encrypted, and everything published so far is readable; nothing was "
            "written. Publish to a new place with --encrypt"
        )
