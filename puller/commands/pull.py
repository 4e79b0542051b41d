"""`puller pull` and `verify`: what brings a target to a version, and what compares it with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from puller.commands.options import (
    as_option,
    atomic_option,
    expired_option,
    given_keys,
    given_parts,
    keep_option,
    mirror_option,
    parts_options,
    staleness_option,
    trust_option,
)
from puller.commands.telling import (
    DIFFERS,
    STALE,
    UNCHANGED,
    about_staleness,
    arranged,
    first_contact,
    held,
    how_stale,
    nothing_there,
    trusted_fields,
)
from puller.console import (
    EXIT_CODES,
    Console,
    amount,
    common,
    console,
    count,
    noun_of,
    rows_of,
    secret_option,
    size,
)
from puller.passwords import masked

if TYPE_CHECKING:
    from puller.plan import Candidate, Plan
    from puller.pull import Options, Outcome
    from puller.targets.base import State, Target
    from puller.wire.head import Head
    from puller.wire.note import Key


REASONS = {
    "new_target": "nothing was held yet",
    "overwrite": "as told",
    "data_missing": "what was pulled is gone",
    "parts_changed": "other parts are to be held",
    "partial_copy": "only parts of the dataset are held",
    "history_unknown": "whether history was forked since cannot be told",
    "schema_changed": "the target cannot follow the change of the schema row by row",
    "patch_failed": "it was tried and could not be used",
    "diffs_failed": "they were tried and could not be used",
    "resync_failed": "it was tried and could not be used",
    "new_epoch": "history was restarted",
    "older_version": "the version is older than the one held",
    "no_diffs": "no diffs lead there",
    "no_patches": "no patches lead there",
    "no_values": "this form of target cannot look values up",
    "too_large": "it is too large to be held in memory",
    "snapshot_cheaper": "it costs less than the diffs",
    "diffs_cheapest": "it costs least",
    "patch_cheapest": "it costs least",
}


@click.command("pull", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("target")
@as_option
@mirror_option
@parts_options
@click.option("--all", "whole", is_flag=True, help="The whole dataset again, where TARGET holds only parts.")
@click.option(
    "--adopt", is_flag=True, help="Use a TARGET that holds other data; with --dry-run, name what would be overwritten."
)
@click.option(
    "--check", is_flag=True, help="First read all of TARGET, as verify does, and refuse if it was changed here."
)
@click.option("--overwrite", is_flag=True, help="Look at everything, and write what differs again, over local edits.")
@click.option(
    "--version", "number", type=click.IntRange(1), help="Go to this version, back or forth; not to the newest."
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be fetched, by which of the ways and why; change nothing."
)
@click.option("--exit-code", is_flag=True, help=f"Exit with {UNCHANGED} if there was nothing new.")
@atomic_option
@keep_option
@trust_option
@click.option("--repin", is_flag=True, help="Forget whom TARGET trusted and what it saw; begin with the --trust keys.")
@expired_option
@staleness_option
@secret_option
@common
def pull_command(
    url: str,
    target: str,
    form: str | None,
    mirrors: tuple[str, ...],
    tables: tuple[str, ...],
    prefixes: tuple[str, ...],
    whole: bool,
    adopt: bool,
    check: bool,
    overwrite: bool,
    number: int | None,
    dry_run: bool,
    exit_code: bool,
    atomic: bool | None,
    keep_generations: int,
    trust: tuple[str, ...],
    repin: bool,
    allow_expired: bool,
    max_staleness: int | None,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Bring TARGET to the newest version of the dataset at URL, fetching only what it is missing.

    URL is http://, https://, s3://bucket/prefix, file:// or a path. TARGET is a folder (kind files), a SQLite database
    (*.db, *.sqlite; kinds table and bytes), a PostgreSQL database (postgresql://user@host/database; the same) or, for one
    table, a file: JSON Lines (*.jsonl), CSV (*.csv), TSV (*.tsv) or Parquet (*.parquet; needs pip install
    'headwater[parquet]').

    A signed dataset is verified by the key that --trust gives (`publisher key show` prints it), or by the one that is met
    first, and from then on by no other: TARGET remembers it.

    With --table and --prefix, TARGET holds just these parts from now on, later pulls too: nothing else is fetched, and
    what it held beside them goes. Every file is verified, and the parts at each newer snapshot, but not HEAD's checksum.

    \b
    Examples:
      puller pull https://data.example.org/catalogue ./catalogue
      puller pull --prefix rules/eu/ --prefix rules/uk/ https://data.example.org/rules ./rules
      puller pull https://data.example.org/prices prices.db
      puller pull --trust prices+c1bd1d7c+AXv… --max-staleness 2h URL prices.db
      puller pull https://data.example.org/prices postgresql://app@db.example/shop
      puller pull --dry-run /srv/data/prices prices.db
      puller pull --version 41 URL prices.db
      puller pull --exit-code -q URL /etc/rules && systemctl reload app
      puller pull --atomic URL /srv/site
    """
    from puller.pull import Options

    out = console(as_json, quiet, verbose)
    options = Options(
        overwrite=overwrite,
        adopt=adopt,
        check=check,
        dry_run=dry_run,
        version=number,
        trust=given_keys(trust, repin=repin),
        repin=repin,
        allow_expired=allow_expired,
        max_staleness=max_staleness,
        secret=secret,
        parts=given_parts(tables, prefixes, whole=whole),
    )
    atomic = arranged(target, None if dry_run else atomic, out.warn)
    outcome = _pull(url, target, form, options, out, mirrors, atomic=atomic, keep=keep_generations)
    fields, text = _describe(outcome, target, dry_run)
    out.detail(
        f"{outcome.plan.way}: {outcome.plan.reason}, {count(outcome.requests, 'request')}, {size(outcome.received)} received"
    )
    out.result(text, **fields)
    if outcome.stale is not None:
        out.warn(about_staleness(outcome.stale, outcome.stale_since, target))
        return STALE
    return UNCHANGED if exit_code and outcome.plan.way == "nothing" else 0


def _pull(
    url: str,
    path: str,
    form: str | None,
    options: Options,
    out: Console,
    mirrors: tuple[str, ...],
    *,
    atomic: bool = False,
    keep: int | None = None,
) -> Outcome:
    from puller.fetch import open_fetcher
    from puller.mirrors import Health
    from puller.pull import pull
    from puller.targets import open_target

    opened: list[Target] = []

    def find(head: Head | None) -> Target:
        for old in opened:
            old.close()
        opened.append(open_target(path, None if head is None else head.kind, form, atomic=atomic, keep=keep))
        return opened[-1]

    health = Health()
    fetcher = open_fetcher(url, mirrors, health)
    try:
        with out.progress() as progress:
            outcome = pull(url, fetcher, find, options, progress=progress, health=health)
    finally:
        fetcher.close()
        for old in opened:
            old.close()
    out.warn_each(f"{'would overwrite' if options.dry_run else 'overwrote'} ", outcome.changes.overwritten)
    for note in outcome.notes:
        out.warn(note)
    return outcome


def _describe(outcome: Outcome, target: str, dry_run: bool) -> tuple[dict[str, Any], str]:
    plan, changes = outcome.plan, outcome.changes
    before = None if outcome.before is None else {"epoch": outcome.before[0], "version": outcome.before[1]}
    fields = {
        "dataset": outcome.dataset,
        "kind": outcome.kind,
        "target": masked(target),
        "changed": plan.way != "nothing" and not dry_run,
        "would_change": plan.way != "nothing",
        "dry_run": dry_run,
        "way": plan.way,
        "reason": plan.reason,
        "from": before,
        "to": {"epoch": outcome.after[0], "version": outcome.after[1]},
        "records": rows_of(outcome.records, outcome.kind),
        "parts": outcome.parts,
        "checksum": outcome.checksum,
        "planned_bytes": plan.bytes,
        "planned_files": plan.files,
        "planned_diffs": len(plan.steps),
        "ways": [
            {"way": c.way, "closed": c.closed, "bytes": c.bytes, "files": c.files, "diffs": len(c.steps)}
            for c in plan.candidates
        ],
        "written": changes.written,
        "deleted": changes.deleted,
        "overwritten": changes.overwritten,
        "notes": outcome.notes,
        "requests": outcome.requests,
        "received": outcome.received,
        "stale": outcome.stale,
        "first_contact": outcome.met,
    } | trusted_fields(outcome.pins)
    version = f"{outcome.dataset} version {outcome.after[1]}"
    if plan.way == "nothing":
        held = amount(outcome.records, outcome.kind)
        state = "stays at" if plan.reason == "older_head" else "up to date with"
        held += f" of {', '.join(outcome.parts)}" if outcome.parts else ""
        return fields, "\n".join([f"{target}: {state} {version} ({held})", *first_contact(outcome, dry_run=dry_run)])
    start = "nothing" if outcome.before is None else f"version {outcome.before[1]}"
    if dry_run:
        text = f"{target}: would go from {start} to {version} by {plan.way} ({REASONS[plan.reason]}), fetching {_cost(plan)}"
        return fields, "\n".join([text, *map(_explain, plan.candidates), *first_contact(outcome, dry_run=dry_run)])
    done = f"{changes.written:,} written, {changes.deleted:,} deleted"
    cost = f"{size(outcome.received)} in {count(outcome.requests, 'request')}"
    text = f"{target}: from {start} to {version} by {plan.way}: {done}, {cost}"
    return fields, "\n".join([text, *nothing_there(outcome), *first_contact(outcome, dry_run=dry_run)])


def _cost(way: Plan | Candidate) -> str:
    """What a way fetches; a resync finds out on the way how much less than everything that is."""
    return f"{'at most ' if way.way == 'resync' else ''}{size(way.bytes)} in {count(way.files, 'file')}"


def _explain(candidate: Candidate) -> str:
    """A line about one of the ways."""
    closed = candidate.closed
    return f"  {candidate.way:<10} {_cost(candidate) if closed is None else f'no: {REASONS[closed]}'}"


@click.command("verify", epilog=EXIT_CODES)
@click.argument("target")
@as_option
@click.option(
    "--repair", is_flag=True, help="Bring back what differs, over local edits, fetching as little as will do."
)
@click.option("--from", "source", metavar="URL", help="Where to repair from (default: where TARGET was pulled from).")
@trust_option
@staleness_option
@secret_option
@mirror_option
@common
def verify_command(
    target: str,
    form: str | None,
    repair: bool,
    source: str | None,
    trust: tuple[str, ...],
    max_staleness: int | None,
    secret: str | None,
    mirrors: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Read everything in TARGET again and compare it with what was pulled.

    Without --repair it changes nothing and asks no host, and exits with 6 if TARGET differs. With --repair, what differs
    is told, and then brought back to the version that is held. With --trust, a TARGET that trusts another key is refused;
    with --max-staleness, one that is stale exits with 6, too.

    \b
    Examples:
      puller verify ./catalogue
      puller verify --repair prices.db
    """
    from puller.pull import Options

    out = console(as_json, quiet, verbose)
    state, opened = held(target, form)
    given = given_keys(trust)
    try:
        _check_trust(state, target, given)
        check = opened.check()
    finally:
        opened.close()
    same = check.equals(state)
    stale, since = (None, 0) if max_staleness is None else how_stale(state, max_staleness)
    out.warn_each("differs: ", check.differing)
    out.warn_each("missing: ", check.missing)
    noun = noun_of(state.kind)
    found, expected = rows_of(check.records, state.kind), rows_of(state.records, state.kind)
    what = check.unread or (
        "content differs" if found == expected else f"{count(found, noun)} where {expected:,} belong"
    )
    text = f"{target}: {count(found, noun)} equal {state.dataset} version {state.version}"
    repaired: dict[str, Any] = {}
    if not same and repair:
        options = Options(overwrite=True, version=state.version, epoch=state.epoch, trust=given, secret=secret)
        outcome = _pull(source or state.source, target, form, options, out, mirrors)
        repaired = _describe(outcome, target, dry_run=False)[0]
        text = (
            f"{target}: {what}; brought back to {state.dataset} version {state.version} by {outcome.plan.way}: "
            f"{outcome.changes.written:,} written, {outcome.changes.deleted:,} deleted, "
            f"{size(outcome.received)} in {count(outcome.requests, 'request')}"
        )
    elif not same:
        text = (
            f"{target}: differs from {state.dataset} version {state.version}: {what}. To bring back what differs: "
            f"puller verify --repair {target}"
        )
    out.result(
        text,
        target=masked(target),
        ok=same,
        dataset=state.dataset,
        version=state.version,
        records=found,
        expected_records=expected,
        checksum=f"{check.checksum:032x}",
        expected_checksum=state.checksum,
        differing=check.differing,
        missing=check.missing,
        unread=check.unread or None,
        repaired=repaired or None,
        stale=stale,
    )
    if stale is not None:
        out.warn(about_staleness(stale, since, target))
    return 0 if (same or repaired) and stale is None else DIFFERS


def _check_trust(state: State, target: str, given: list[Key]) -> None:
    """Raise Untrusted if what is held does not go back to one of the keys that were given. Asks no host."""
    from puller.errors import Distrust, Untrusted

    trusted = {*state.pins.given, *trusted_fields(state.pins)["roots"]}
    if given and not trusted & set(map(str, given)):
        raise Untrusted(
            Distrust.UNKNOWN_KEY if state.pins.key_set else Distrust.UNSIGNED,
            f"{target} trusts {' '.join(sorted(trusted)) or 'no key'}, not the one given; pull with --trust to look further back",
        )
