"""What several commands of `publisher` look up and say: of a HEAD, a publish, and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from puller.console import rows_of, size, span

if TYPE_CHECKING:
    from publisher.keys import Keyring, SigningKey
    from publisher.publish import Outcome
    from publisher.signing import Signing
    from puller.wire.head import Head


def find_keyring(signing_key: str | None) -> Keyring:
    """The keys at hand, with the one that was given first."""
    from publisher.keys import Keyring

    return Keyring(given_key(signing_key))


def keyring_or_none(signing_key: str | None, *, unsigned: bool) -> Keyring | None:
    """The keys at hand; None with --unsigned. Raises UsageError for both flags."""
    from puller.errors import UsageError

    if unsigned and signing_key is not None:
        raise UsageError("--unsigned and --signing-key exclude each other")
    return None if unsigned else find_keyring(signing_key)


def given_key(path: str | None) -> SigningKey | None:
    """The private key in a file that a flag names; None without the flag."""
    from publisher.keys import read_key

    return None if path is None else read_key(path)


def about_key(signing: Signing | None) -> list[str]:
    """Lines about the key of a dataset that was created."""
    if signing is None:
        return ["  not signed: whoever can write to the host, or stands between, can change the data"]
    where = (
        "the private key is the one given"
        if signing.made is None
        else f"the private key is in {signing.made}; back it up"
    )
    return [f"  signed; for pullers: --trust {' '.join(map(str, signing.keys.roots))}", f"  {where}"]


def key_fields(signing: Signing | None) -> dict[str, Any]:
    """The same for --json."""
    if signing is None:
        return {"public_keys": [], "private_key": None}
    return {"public_keys": list(map(str, signing.keys.roots)), "private_key": signing.made}


def describe(outcome: Outcome, dest: str, dry_run: bool) -> tuple[dict[str, Any], str]:
    """What a publish did: fields for --json, and lines."""
    head = outcome.head
    fields = fields_of(head, dest) | {
        "changed": outcome.changed,
        "created": outcome.created,
        "dry_run": dry_run,
        "added": outcome.added,
        "updated": outcome.updated,
        "deleted": outcome.deleted,
        "schema_changed": outcome.schema_changed,
        "settings_changed": outcome.settings_changed,
        "new_snapshot": outcome.snapshot,
        "written": outcome.written,
        "skipped": [{"name": name, "reason": reason} for name, reason in outcome.report.skipped],
        "secret_file": outcome.secret,
    }
    fields |= key_fields(outcome.signing) if outcome.created else {}
    if not outcome.changed:
        return (
            fields,
            f"{dest}: nothing new; {head.name} stays at version {head.version}{_about_settings(outcome, dry_run)}",
        )
    what = f"{outcome.added:,} added, {outcome.updated:,} updated, {outcome.deleted:,} deleted"
    what += ", schema changed" if outcome.schema_changed else ""
    verb = "would publish" if dry_run else "published"
    written = f"{size(outcome.written)} {'to write' if dry_run else 'written'}"
    created = f"{'would create' if dry_run else 'created'} the dataset {head.name}{about_secret(head, outcome.secret)}"
    start = f"{dest}: {created}\n" if outcome.created else ""
    text = f"{start}{dest}: {verb} version {head.version}: {what}; {written}"
    return fields, "\n".join([text, *(about_key(outcome.signing) if outcome.created and not dry_run else [])])


def _about_settings(outcome: Outcome, dry_run: bool) -> str:
    """What is said of settings that were written to HEAD without a new version."""
    if not outcome.settings_changed:
        return ""
    head, verb = outcome.head, "would be" if dry_run else "were"
    keep = "" if head.keep is None else f" and --keep {span(head.keep)}"
    return f"; the settings {verb} changed to --interval {span(head.interval)}{keep}"


def about_secret(head: Head, kept: str | None) -> str:
    """What is said of a dataset that was created, if it is encrypted."""
    if head.encryption is None:
        return ""
    where = f" in {kept}: pullers need it, and without it nobody can read the dataset again" if kept else ""
    return f", encrypted with the secret {head.encryption}{where}"


def head_at(dest: str) -> Head:
    """HEAD at `dest`. Raises NotFound where there is no dataset."""
    from publisher.published import read_head
    from puller.errors import NotFound
    from puller.stores import open_store

    head, _, _ = read_head(open_store(dest))
    if head is None:
        raise NotFound(f"there is no dataset at {dest}; `publisher publish SOURCE {dest}` makes one")
    return head


def opened(head: Head, secret: str | None) -> Head:
    """`head`, opened if the secret is at hand, or was given; what it says in the clear is shown in any case."""
    from puller.errors import SecretError
    from puller.secret import unlock

    try:
        return unlock(head, secret)[0]
    except SecretError:
        if secret is not None:
            raise
        return head


def fields_of(head: Head, dest: str) -> dict[str, Any]:
    """A HEAD for --json."""
    return {
        "dest": dest,
        "name": head.name,
        "kind": head.kind or None,
        "epoch": head.epoch,
        "version": head.version,
        "time": head.time,
        "records": rows_of(head.records, head.kind) if head.kind else None,
        "checksum": f"{head.checksum:032x}" if head.kind else None,
        "snapshot_version": head.snapshot_version,
        "snapshot_bytes": head.snapshot.bytes,
        "snapshot_files": head.snapshot.files,
        "publish_id": head.publish_id,
        "trust": head.trust,
        "expires": head.expires,
        "interval": head.interval,
        "keep": head.keep,
        "encrypted": head.encryption is not None,
        "secret_id": head.encryption,
    }
