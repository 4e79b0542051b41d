"""`puller follow`: keeps targets at the newest version, as a service."""

from __future__ import annotations

from collections.abc import Callable
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
    trust_option,
)
from puller.commands.telling import arranged
from puller.console import EXIT_CODES, Duration, secret_option
from puller.service.settings import ServiceCommand, made, service_options, settings

if TYPE_CHECKING:
    from puller.follow.following import Follow


@click.command("follow", cls=ServiceCommand, table="follow", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("target")
@as_option
@mirror_option
@click.option(
    "--interval", type=Duration(), metavar="TIME", help="Poll so often, as 1s or 5m (default: what HEAD suggests)."
)
@click.option("--exec", "command", metavar="CMD", help="Run this in a shell after each change; see above.")
@click.option(
    "--exec-timeout", type=Duration(), default=600, metavar="TIME", help="Kill CMD after this time (default: 10m)."
)
@click.option("--webhook", metavar="URL", help="POST a JSON object there after each change.")
@click.option("--adopt", is_flag=True, help="Use a TARGET that holds other data, and overwrite what the dataset names.")
@atomic_option
@keep_option
@parts_options
@trust_option
@expired_option
@click.option(
    "--max-staleness", type=Duration(), metavar="TIME", help="Be red while the newest HEAD is older, as 90s or 2h."
)
@secret_option
@service_options
def follow_command(jobs: list[dict[str, Any]], **shared: Any) -> int:
    """Keep TARGET at the newest version of the dataset at URL, until it is stopped. What is held stays, whatever fails.

    It polls at the interval that HEAD suggests, 10 % more or less, for the first time anywhere within an interval, or at
    once where TARGET holds nothing yet. After failures it waits longer, up to 5 minutes. SIGHUP polls now; SIGTERM and
    SIGINT end it within a second, or after the step under way. Other commands may use TARGET meanwhile, but only one
    follower may.

    --exec runs CMD for each version that TARGET arrives at, also for one that was pulled while nobody followed. Its
    standard input has a JSON object in each line for each changed key. Its environment has HEADWATER_NAME,
    HEADWATER_EPOCH, HEADWATER_VERSION, HEADWATER_PREVIOUS_EPOCH and HEADWATER_PREVIOUS_VERSION (what it ran for last;
    empty: not known), HEADWATER_CHANGES (how many keys changed, or "unknown": look at everything), HEADWATER_TARGET and
    HEADWATER_URL. It runs again, later and later, until it ends with 0, and may run twice for a version. --webhook keeps
    to the same rules.

    Every option can also be given as a variable (HEADWATER_INTERVAL=5s) or in the file of --config (interval = "5s"), which
    may have several [[follow]] tables with a url and a target each.

    \b
    Examples:
      puller follow https://data.example.org/catalogue ./catalogue
      puller follow --exec 'systemctl reload app' https://data.example.org/rules /etc/rules
      puller follow --listen :9101 --max-staleness 2h --log-format json URL prices.db
      puller follow --config /etc/headwater/follow.toml
    """
    from puller.follow.following import Following
    from puller.follow.meters import Meters
    from puller.service.process import Service

    _check_apart([job["target"] for job in jobs])
    service = Service("puller follow", settings(shared))
    meters = Meters(service.registry)
    followings: list[Following] = []

    def begin(job: dict[str, Any]) -> None:
        followings.append(Following(_follow(job, service.log.warning), service, meters))
        followings[-1].begin()

    try:
        made(jobs, begin)
        return service.main([following.job for following in followings])
    finally:
        for following in followings:
            following.close()


def _check_apart(targets: list[str]) -> None:
    """Raise UsageError where two jobs would write to one place, however it is spelt."""
    import os
    from itertools import pairwise

    from puller.errors import UsageError
    from puller.passwords import masked
    from puller.postgresql import is_address

    def place(target: str) -> list[str]:
        return [target] if is_address(target) else os.path.realpath(target).rstrip("/").split("/")

    for (upper, one), (lower, other) in pairwise(sorted((place(target), target) for target in targets)):
        if lower[: len(upper)] == upper:
            same = "the same target" if lower == upper else "targets of which one is in the other"
            raise UsageError(f"two jobs have {same}: {masked(one)} and {masked(other)}")


def _follow(job: dict[str, Any], warn: Callable[[str], None]) -> Follow:
    from puller.follow.following import Follow
    from puller.follow.hooks import Command, Hook, WebHook
    from puller.pull import Options

    hooks: list[Hook] = []
    if job["command"]:
        hooks.append(Command(job["command"], job["exec_timeout"]))
    if job["webhook"]:
        hooks.append(WebHook(job["webhook"]))
    options = Options(
        adopt=job["adopt"],
        trust=given_keys(job["trust"]),
        allow_expired=job["allow_expired"],
        max_staleness=job["max_staleness"],
        secret=job["secret"],
        parts=given_parts(job["tables"], job["prefixes"], whole=False),
    )
    return Follow(
        url=job["url"],
        target=job["target"],
        form=job["form"],
        mirrors=job["mirrors"],
        options=options,
        interval=job["interval"],
        hooks=hooks,
        atomic=arranged(job["target"], job["atomic"], warn),
        keep=job["keep_generations"],
    )
