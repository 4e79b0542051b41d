"""The command `puller`: parse, call one function, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from puller.console import EXIT_CODES, Console, amount, common, console, count, noun_of, rows_of, run, size

if TYPE_CHECKING:
    from puller.plan import Candidate, Plan
    from puller.pull import Options, Outcome
    from puller.targets.base import Target
    from puller.wire.head import Head

UNCHANGED = 10
DIFFERS = 6
REASONS = {
    "new_target": "nothing was held yet",
    "overwrite": "as told",
    "data_missing": "what was pulled is gone",
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


as_option = click.option(
    "--as", "form", type=click.Choice(["folder", "sqlite", "jsonl"]), help="What TARGET is, if its name does not tell."
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater")
def main() -> None:
    """Keep exact, verified copies of datasets that `publisher` publishes as static files.

    \b
    Examples:
      puller pull https://data.example.org/catalogue ./catalogue
      puller pull https://data.example.org/prices prices.db
      puller status prices.db
      puller verify prices.db
    """


mirror_option = click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="URL",
    help="A further address of the same dataset, used where the first fails or lags; repeatable.",
)


@main.command("pull", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("target")
@as_option
@mirror_option
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
@common
def pull_command(
    url: str,
    target: str,
    form: str | None,
    mirrors: tuple[str, ...],
    adopt: bool,
    check: bool,
    overwrite: bool,
    number: int | None,
    dry_run: bool,
    exit_code: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Bring TARGET to the newest version of the dataset at URL, fetching only what it is missing.

    URL is http://, https://, file:// or a path. TARGET is a folder (kind files), a SQLite database
    (*.db, *.sqlite; kinds table and bytes) or a JSON Lines file (*.jsonl; kind table).

    \b
    Examples:
      puller pull https://data.example.org/catalogue ./catalogue
      puller pull https://data.example.org/prices prices.db
      puller pull --dry-run /srv/data/prices prices.db
      puller pull --version 41 URL prices.db
      puller pull --exit-code -q URL /etc/rules && systemctl reload app
    """
    from puller.pull import Options

    out = console(as_json, quiet, verbose)
    options = Options(overwrite=overwrite, adopt=adopt, check=check, dry_run=dry_run, version=number)
    outcome = _pull(url, target, form, options, out, mirrors)
    fields, text = _describe(outcome, target, dry_run)
    out.detail(
        f"{outcome.plan.way}: {outcome.plan.reason}, {count(outcome.requests, 'request')}, {size(outcome.received)} received"
    )
    out.result(text, **fields)
    return UNCHANGED if exit_code and outcome.plan.way == "nothing" else 0


def _pull(url: str, path: str, form: str | None, options: Options, out: Console, mirrors: tuple[str, ...]) -> Outcome:
    from puller.fetch import open_fetcher
    from puller.mirrors import Health
    from puller.pull import pull
    from puller.targets import open_target

    opened: list[Target] = []

    def find(head: Head | None) -> Target:
        for old in opened:
            old.close()
        opened.append(open_target(path, None if head is None else head.kind, form))
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
        "target": target,
        "changed": plan.way != "nothing" and not dry_run,
        "would_change": plan.way != "nothing",
        "dry_run": dry_run,
        "way": plan.way,
        "reason": plan.reason,
        "from": before,
        "to": {"epoch": outcome.after[0], "version": outcome.after[1]},
        "records": rows_of(outcome.records, outcome.kind),
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
    }
    version = f"{outcome.dataset} version {outcome.after[1]}"
    if plan.way == "nothing":
        held = amount(outcome.records, outcome.kind)
        state = "stays at" if plan.reason == "older_head" else "up to date with"
        return fields, f"{target}: {state} {version} ({held})"
    start = "nothing" if outcome.before is None else f"version {outcome.before[1]}"
    if dry_run:
        text = f"{target}: would go from {start} to {version} by {plan.way} ({REASONS[plan.reason]}), fetching {_cost(plan)}"
        return fields, "\n".join([text, *map(_explain, plan.candidates)])
    done = f"{changes.written:,} written, {changes.deleted:,} deleted"
    cost = f"{size(outcome.received)} in {count(outcome.requests, 'request')}"
    return fields, f"{target}: from {start} to {version} by {plan.way}: {done}, {cost}"


def _cost(way: Plan | Candidate) -> str:
    """What a way fetches; a resync finds out on the way how much less than everything that is."""
    return f"{'at most ' if way.way == 'resync' else ''}{size(way.bytes)} in {count(way.files, 'file')}"


def _explain(candidate: Candidate) -> str:
    """A line about one of the ways."""
    closed = candidate.closed
    return f"  {candidate.way:<10} {_cost(candidate) if closed is None else f'no: {REASONS[closed]}'}"


@main.command("status", epilog=EXIT_CODES)
@click.argument("target")
@as_option
@common
def status_command(target: str, form: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say which version of which dataset TARGET holds. Reads only bookkeeping.

    \b
    Example:
      puller status prices.db
    """
    from datetime import UTC, datetime

    out = console(as_json, quiet, verbose)
    state, opened = _held(target, form)
    opened.close()
    fields = {
        "target": target,
        "dataset": state.dataset,
        "kind": state.kind,
        "source": state.source,
        "epoch": state.epoch,
        "version": state.version,
        "records": rows_of(state.records, state.kind),
        "checksum": state.checksum,
        "published": state.time,
        "pulled": state.pulled,
        "publish_id": state.publish_id,
    }
    published, pulled = (datetime.fromtimestamp(t, UTC).isoformat(" ", "seconds") for t in (state.time, state.pulled))
    text = (
        f"{target}: {state.dataset} version {state.version} (epoch {state.epoch}), {amount(state.records, state.kind)}\n"
        f"  published  {published}\n  pulled     {pulled} from {state.source}\n  checksum   {state.checksum}"
    )
    out.result(text, **fields)


@main.command("verify", epilog=EXIT_CODES)
@click.argument("target")
@as_option
@click.option(
    "--repair", is_flag=True, help="Bring back what differs, over local edits, fetching as little as will do."
)
@click.option("--from", "source", metavar="URL", help="Where to repair from (default: where TARGET was pulled from).")
@mirror_option
@common
def verify_command(
    target: str,
    form: str | None,
    repair: bool,
    source: str | None,
    mirrors: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Read everything in TARGET again and compare it with what was pulled.

    Without --repair it changes nothing and asks no host, and exits with 6 if TARGET differs. With --repair, what differs
    is told, and then brought back to the version that is held.

    \b
    Examples:
      puller verify ./catalogue
      puller verify --repair prices.db
    """
    from puller.pull import Options

    out = console(as_json, quiet, verbose)
    state, opened = _held(target, form)
    try:
        check = opened.check()
    finally:
        opened.close()
    same = check.equals(state)
    out.warn_each("differs: ", check.differing)
    out.warn_each("missing: ", check.missing)
    noun = noun_of(state.kind)
    found, expected = rows_of(check.records, state.kind), rows_of(state.records, state.kind)
    what = "content differs" if found == expected else f"{found:,} {noun}s where {expected:,} belong"
    text = f"{target}: {count(found, noun)} equal {state.dataset} version {state.version}"
    repaired: dict[str, Any] = {}
    if not same and repair:
        options = Options(overwrite=True, version=state.version)
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
        target=target,
        ok=same,
        dataset=state.dataset,
        version=state.version,
        records=found,
        expected_records=expected,
        checksum=f"{check.checksum:032x}",
        expected_checksum=state.checksum,
        differing=check.differing,
        missing=check.missing,
        repaired=repaired or None,
    )
    return 0 if same or repaired else DIFFERS


@main.command("doctor", epilog=EXIT_CODES)
@click.argument("url")
@common
def doctor_command(url: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Look at how the dataset at URL is served, and say what is wrong and what to do about it.

    Exits with 1 if there is a problem. Asks for one name that cannot exist, to see what is said of missing files.

    \b
    Example:
      puller doctor https://data.example.org/catalogue
    """
    from puller.doctor import examine, fields, problems, told

    findings, _ = examine(url)
    wrong = problems(findings)
    console(as_json, quiet, verbose).result(told(findings), url=url, problems=wrong, findings=fields(findings))
    return 1 if wrong else 0


def _held(path: str, form: str | None) -> tuple[Any, Any]:
    from puller.errors import TargetError
    from puller.targets import open_target

    target = open_target(path, None, form)
    state = target.state()
    if state is None:
        target.close()
        raise TargetError(f"nothing was pulled into {path} yet")
    return state, target


def entry() -> None:
    """The `puller` command."""
    run(main, "puller")


if __name__ == "__main__":
    entry()
