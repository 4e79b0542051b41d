"""What several commands of `puller` look up and say: of trust, staleness, and what is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from puller.console import moment

if TYPE_CHECKING:
    from puller.mirror import Outcome as Mirrored
    from puller.pull import Outcome
    from puller.targets.base import State
    from puller.trust import Pins, Staleness


UNCHANGED = 10


DIFFERS = STALE = 6


def about_staleness(stale: Staleness, since: int, target: str) -> str:
    """The warning about a copy that is stale; `since` is in Unix seconds."""
    return f"{target} is stale since {moment(since)}: {stale.because}. Ask whoever serves or publishes the dataset"


def trusted_fields(pins: Pins) -> dict[str, Any]:
    """Whom a target trusts, for --json."""
    if not pins.key_set:
        return {"signed": False, "key_set": 0, "roots": [], "given": False}
    from puller.wire.keyset import parse_key_set

    keys = parse_key_set(pins.key_set)[0]
    return {"signed": True, "key_set": keys.number, "roots": list(map(str, keys.roots)), "given": bool(pins.given)}


def first_contact(outcome: Outcome | Mirrored, *, dry_run: bool = False) -> list[str]:
    """What is said about trust at first contact."""
    if not outcome.met:
        return []
    trusted = trusted_fields(outcome.pins)
    if not trusted["signed"]:
        return ["  not signed: whoever can write to the host, or stands between, can change the data"]
    if trusted["given"]:
        return [f"  signed under the key given, key set {trusted['key_set']}"]
    verb = "would trust" if dry_run else "trusts from now on"
    return [
        f"  {verb} the key that it met first: {' '.join(trusted['roots'])}",
        "  compare it with `publisher key show`, or give the right one with --trust",
    ]


def nothing_there(outcome: Outcome) -> list[str]:
    """What is said of a copy of parts that came out empty."""
    which = "this prefix" if len(outcome.parts) == 1 else "one of these prefixes"
    return [f"  no record has {which} ({', '.join(outcome.parts)}); the copy is empty"] if outcome.holds_none else []


def how_stale(state: State, most: int | None) -> tuple[Staleness | None, int]:
    """Why what is held is stale now, and since when; None if it is not. `most`: of --max-staleness, in seconds."""
    import time

    return state.staleness(int(time.time()), most) or (None, 0)


def held(path: str, form: str | None) -> tuple[Any, Any]:
    """The state that a target holds, and the target, open. Raises TargetError where nothing was pulled."""
    from puller.errors import TargetError
    from puller.targets import open_target

    target = open_target(path, None, form)
    state = target.state()
    if state is None:
        target.close()
        raise TargetError(f"nothing was pulled into {target.where} yet")
    return state, target


def arranged(target: str, atomic: bool | None, warn: Callable[[str], None]) -> bool:
    """Whether a new folder is to be switched as a whole; one that is there already is arranged so, or back."""
    if atomic is None:
        return False
    from puller.targets.generations import arrange

    reason = arrange(target, atomic=atomic)
    if reason is not None:
        warn(f"{target} is updated in place, file by file: {reason}")
    return atomic and reason is None
