"""Publishing datasets as static files: sources, changes, building trees, stores. Programs begin with `open`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publisher.dataset import Dataset

__all__ = ["open"]


def open(  # noqa: A001 - read as `publisher.open`
    dest: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    interval: int | None = None,
    cache: bool = True,
    signing_key: str | None = None,
    unsigned: bool = False,
    secret: str | None = None,
    encrypt: bool = False,
    single_writer: bool = False,
) -> Dataset:
    """Open the dataset at `dest`, a local folder or s3://bucket/prefix, to read it and to publish batches of changes.

    Where there is none, an empty one (version 1) is created if `kind` is given: "bytes" or "table"; `name` is then its
    name (the last part of `dest`, if it is not given) and `interval` the seconds that pullers should wait between polls
    (30). Of a dataset that is there, they must be what it has; another `interval` is published with the next batch.

    A dataset is signed (SPEC 7.5) from its creation, unless that is with `unsigned`. `signing_key` is the file of the private
    key; without it, $HEADWATER_SIGNING_KEY has the key, or it is in the keys folder ($XDG_CONFIG_HOME/headwater/keys, or
    ~/.config/headwater/keys), where a new dataset's key is put. `publisher key show` prints the public one.

    `encrypt`: a new dataset is encrypted, with a secret that is made for it and kept in the keys folder; one that is
    there must be encrypted. `secret` is the secret's text, or the file that it is in; without it, it is taken from
    HEADWATER_SECRET in the environment, or from the keys folder. A new dataset is encrypted with the one that is given.

    Without `cache`, no record hashes are kept on this machine, and the files of the dataset are read instead. What is kept
    has the keys of the records in the clear, and hashes of their values, also where the dataset is encrypted.

    A bucket's service that ignores conditional writes is refused when a dataset is created there, because publishers could
    overwrite each other's versions; `single_writer` says that no two ever publish there at a time.

    Raises NotFound where there is no dataset and no kind was given; UsageError for a kind or a name that is not the
    dataset's, or for the kind "files"; SecretError where the secret of an encrypted dataset is not at hand; Refused for a
    folder that holds something else; Invalid for a damaged HEAD.
    """
    from publisher.dataset import open_dataset

    return open_dataset(
        dest,
        name=name,
        kind=kind,
        interval=interval,
        cache=cache,
        signing_key=signing_key,
        unsigned=unsigned,
        secret=secret,
        encrypt=encrypt,
        single_writer=single_writer,
    )
