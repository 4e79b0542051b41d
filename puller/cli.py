"""The command `puller`: parse, call one function, print."""

from __future__ import annotations

from typing import Any

import click

from puller.console import EXIT_CODES, amount, common, console, count, noun_of, rows_of, run, size

UNCHANGED = 10
DIFFERS = 6
REASONS = {
    "new_target": "nothing was held yet",
    "overwrite": "as told",
    "data_missing": "what was pulled is gone",
    "schema_changed": "the schema changed",
    "diffs_failed": "the diffs could not be used",
    "new_epoch": "history was restarted",
    "no_diffs": "no diffs lead on from here",
    "snapshot_cheaper": "it costs less than the diffs",
    "diffs_cheapest": "they cost less than everything",
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


@main.command("pull", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("target")
@as_option
@click.option(
    "--adopt", is_flag=True, help="Use a TARGET that holds other data; with --dry-run, name what would be overwritten."
)
@click.option("--overwrite", is_flag=True, help="Write everything again, over local edits.")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched and why, and change nothing.")
@click.option("--exit-code", is_flag=True, help=f"Exit with {UNCHANGED} if there was nothing new.")
@common
def pull_command(
    url: str,
    target: str,
    form: str | None,
    adopt: bool,
    overwrite: bool,
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
      puller pull --exit-code -q URL /etc/rules && systemctl reload app
    """
    from puller.fetch import open_fetcher
    from puller.pull import Options, pull
    from puller.targets import open_target
    from puller.targets.base import Target
    from puller.wire.head import Head

    out = console(as_json, quiet, verbose)
    opened: list[Target] = []

    def find(head: Head | None) -> Target:
        for old in opened:
            old.close()
        opened.append(open_target(target, None if head is None else head.kind, form))
        return opened[-1]

    fetcher = open_fetcher(url)
    try:
        with out.progress() as progress:
            options = Options(overwrite=overwrite, adopt=adopt, dry_run=dry_run)
            outcome = pull(url, fetcher, find, options, progress=progress)
    finally:
        fetcher.close()
        for old in opened:
            old.close()
    fields, text = _describe(outcome, target, dry_run)
    out.warn_each(f"{'would overwrite' if dry_run else 'overwrote'} ", outcome.changes.overwritten)
    for note in outcome.notes:
        out.warn(note)
    out.detail(
        f"{outcome.plan.way}: {outcome.plan.reason}, {count(outcome.requests, 'request')}, {size(outcome.received)} received"
    )
    out.result(text, **fields)
    return UNCHANGED if exit_code and outcome.plan.way == "nothing" else 0


def _describe(outcome: Any, target: str, dry_run: bool) -> tuple[dict[str, Any], str]:
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
        files = f"{size(plan.bytes)} in {count(plan.files, 'file')}"
        return (
            fields,
            f"{target}: would go from {start} to {version} by {plan.way} ({REASONS[plan.reason]}), fetching {files}",
        )
    done = f"{changes.written:,} written, {changes.deleted:,} deleted"
    cost = f"{size(outcome.received)} in {count(outcome.requests, 'request')}"
    return fields, f"{target}: from {start} to {version} by {plan.way}: {done}, {cost}"


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
@common
def verify_command(target: str, form: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Read everything in TARGET again and compare it with what was pulled. Changes nothing; asks no host.

    Exits with 6 if TARGET differs.

    \b
    Example:
      puller verify ./catalogue
    """
    out = console(as_json, quiet, verbose)
    state, opened = _held(target, form)
    try:
        check = opened.check()
    finally:
        opened.close()
    same = (f"{check.checksum:032x}", check.records) == (state.checksum, state.records)
    same = same and not check.differing and not check.missing
    out.warn_each("differs: ", check.differing)
    out.warn_each("missing: ", check.missing)
    found, expected = rows_of(check.records, state.kind), rows_of(state.records, state.kind)
    text = f"{target}: {count(found, noun_of(state.kind))} equal {state.dataset} version {state.version}"
    if not same:
        what = "content differs" if found == expected else f"{found:,} {noun_of(state.kind)}s where {expected:,} belong"
        text = (
            f"{target}: differs from {state.dataset} version {state.version}: {what}. To bring it back: "
            f"puller pull --overwrite {state.source} {target}"
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
    )
    return 0 if same else DIFFERS


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
