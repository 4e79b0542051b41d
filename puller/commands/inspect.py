"""`puller status` and `doctor`: what only looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from puller.commands.options import as_option, staleness_option
from puller.commands.telling import STALE, about_staleness, held, how_stale, trusted_fields
from puller.console import EXIT_CODES, amount, common, console, moment, rows_of
from puller.passwords import masked

if TYPE_CHECKING:
    from puller.targets.base import State


@click.command("status", epilog=EXIT_CODES)
@click.argument("target")
@as_option
@staleness_option
@common
def status_command(
    target: str, form: str | None, max_staleness: int | None, as_json: bool, quiet: bool, verbose: bool
) -> int:
    """Say which version of which dataset TARGET holds, whom it trusts, and how `puller follow` gets on. Reads only
    bookkeeping.

    Exits with 6 if the newest HEAD that was seen is expired, or older than --max-staleness.

    \b
    Examples:
      puller status prices.db
      puller status --max-staleness 2h -q prices.db || echo stale
    """
    import time

    from puller.follow.record import told
    from puller.parts import named

    out = console(as_json, quiet, verbose)
    state, opened = held(target, form)
    following = told(opened, state, time.time())
    opened.close()
    parts = named(state.kind, state.parts)
    stale, since = how_stale(state, max_staleness)
    fields = {
        "target": masked(target),
        "dataset": state.dataset,
        "kind": state.kind,
        "source": state.source,
        "epoch": state.epoch,
        "version": state.version,
        "records": rows_of(state.records, state.kind),
        "parts": parts,
        "checksum": state.checksum,
        "published": state.time,
        "pulled": state.pulled,
        "publish_id": state.publish_id,
        "seen": dict(zip(("epoch", "version", "time"), state.seen, strict=True)),
        "expires": state.expires,
        "stale": stale,
        "encrypted": bool(state.encryption),
        "secret_id": state.encryption or None,
        "following": following,
    } | trusted_fields(state.pins)
    published, pulled = map(moment, (state.time, state.pulled))
    text = (
        f"{target}: {state.dataset} version {state.version} (epoch {state.epoch}), {amount(state.records, state.kind)}\n"
        f"  published  {published}\n  pulled     {pulled} from {state.source}\n  checksum   {state.checksum}\n"
        f"  signed     {_signed(state)}\n"
        f"  newest     version {state.seen[1]} (epoch {state.seen[0]}), of {moment(state.seen[2])}{_expires(state)}"
    )
    text += f"\n  parts      {', '.join(parts)}" if parts else ""
    text += f"\n  encrypted  at its source, with the secret {state.encryption}" if state.encryption else ""
    text += "" if following is None else f"\n  following  {_following(following)}"
    out.result(text, **fields)
    if stale is not None:
        out.warn(about_staleness(stale, since, target))
        return STALE
    return 0


def _following(following: dict[str, Any]) -> str:
    who = f"process {following['pid']} on {following['host']}"
    text = f"{who}, last poll {moment(following['last_poll'])}" if following["running"] else f"nobody now; last {who}"
    if following["failures"]:
        text += f"; {following['failures']} failed in a row, the last with: {following['last_error']}"
    return text


def _signed(state: State) -> str:
    trusted = trusted_fields(state.pins)
    if not trusted["signed"]:
        return "no"
    how = "given with --trust" if trusted["given"] else "met first"
    return f"key set {trusted['key_set']}, {how}; root {' '.join(trusted['roots'])}"


def _expires(state: State) -> str:
    return "" if state.expires is None else f", expires {moment(state.expires)}"


@click.command("doctor", epilog=EXIT_CODES)
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
