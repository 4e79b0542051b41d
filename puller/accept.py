"""Whether a HEAD that a host gave is taken for a copy: that of its dataset, trusted, not older, and of the same history."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from puller.errors import Distrust, HeadwaterError, Invalid, NotFound, SecretError, Untrusted
from puller.fetch import Answer, Fetcher, Patience
from puller.heads import Found, key_sets, superseded
from puller.secret import unlock
from puller.targets.base import State, Target
from puller.trust import Keeper, identity
from puller.wire.head import Head
from puller.wire.note import Key

if TYPE_CHECKING:
    from puller.wire.cipher import Cipher


@dataclass(frozen=True)
class Terms:
    """On what terms HEADs are taken.

    `trust`: public keys, one of which the dataset's key sets must go back to; `repin`: forget whom the target trusts and
    what it saw, and begin with these keys; `allow_expired`: take an expired HEAD at first contact; `overwrite`: of an
    unsigned dataset, take the host's word where history is another one; `secret`: of an encrypted dataset, as a text or
    the file that it is in (None: where it is otherwise found, see `puller.secret.unlock`).
    """

    trust: Sequence[Key] = ()
    repin: bool = False
    allow_expired: bool = False
    overwrite: bool = False
    secret: str | None = field(default=None, repr=False)


@dataclass
class Copy:
    """A target, and what it remembers as far as this puller knows: None before a first pull. A dry run changes nothing."""

    target: Target
    state: State | None
    dry_run: bool

    def remember(self, **changes: Any) -> None:
        """Change what the target remembers, unless another puller did that meanwhile."""
        if self.dry_run or self.state is None:
            return
        was, self.state = self.state, msgspec.structs.replace(self.state, **changes)
        self.target.remember(self.state, was)


class Choice(NamedTuple):
    """A HEAD that was found to be right, opened; `older`: than one that was seen, so that it is to be passed over."""

    head: Head
    cipher: Cipher | None
    answer: Answer
    older: bool


class Judge:
    """Judges the HEADs that hosts give for a copy. What it gets over is added to `notes`."""

    def __init__(
        self,
        copy: Copy,
        fetcher: Fetcher,
        terms: Terms,
        now: Callable[[], float],
        patience: Callable[[], Patience],
        notes: list[str],
    ) -> None:
        self._copy = copy
        self._fetcher = fetcher
        self._terms = terms
        self._now = now
        self._patience = patience
        self._notes = notes
        self.accepted: dict[str, Any] = {}
        """What the state is to remember of the newest HEAD, once it was verified."""
        self.met = False
        """Whether that was the first contact, or the first with a signed HEAD."""

    def choose(self, found: list[Found]) -> Choice | None:
        """The first HEAD that is right; None if it was not modified. Raises Untrusted, Invalid, SecretError, FetchError.

        There are several where a dataset has mirrors: one that lies makes room for the next.
        """
        first: HeadwaterError | None = None
        for head, answer in found:
            if head is None:
                return None
            try:
                if self._copy.state is not None:
                    self._check_same(self._copy.state, head)  # before the secret of something else is asked for
                opened, cipher = unlock(head, self._terms.secret)
                accepted = self._accept(opened, answer)
            except (Invalid, SecretError) as error:
                first = first or error
            else:
                if first is not None:
                    self._notes.append(str(first))
                return Choice(opened, cipher, answer, older=not accepted)
        assert first is not None
        raise first

    def not_modified(self) -> None:
        """HEAD is the one that was verified before: note that, and that a key which was given is proven."""
        state = self._copy.state
        assert state is not None
        pins = self._keeper(state).proven(state.pins) if self._terms.trust else state.pins
        if pins is not state.pins or state.behind is not None:
            self._copy.remember(pins=pins, behind=None)

    def remember_seen(self) -> None:
        """Remember the newest HEAD though it could not be applied: nobody is to take the copy back before it."""
        copy, was = self._copy, self._copy.state
        if was is None or not self.accepted or copy.dry_run or self.accepted["verified"] == was.verified:
            return
        with contextlib.suppress(HeadwaterError, OSError):
            state = copy.target.state()
            if state is not None and (state.mark == was.mark or state.seen < self.accepted["seen"]):
                copy.state = state
                copy.remember(**self.accepted, etag=None)

    def archived(self, newest: Head, version: int) -> Head:
        """The superseded HEAD of a version of HEAD's epoch, verified and opened. Raises NotFound, Invalid."""
        keeper, pins = self._keeper(self._copy.state), self.accepted["pins"]
        return superseded(self._fetcher, newest, version, keeper, pins, self._terms.secret)

    def same_history(self, state: State, newest: Head) -> bool:
        """Whether the version that is held is part of the history that leads to later versions of its epoch (SPEC 5.6).

        A copy of parts has no checksum to tell. Raises Untrusted where history was forked.
        """
        try:
            known = self.archived(newest, state.version)
        except NotFound:
            return False
        if known.publish_id != state.publish_id and not self._may_go_back(state):
            raise _fork(state, known)
        return known.publish_id == state.publish_id

    def is_other(self, state: State, head: Head) -> bool:
        """Whether a HEAD is another one for the version that is held; raises Untrusted if it must not be (SPEC 7.4)."""
        same = state.position == (head.epoch, head.version)
        known = (state.publish_id, state.snapshot, state.checksum, state.records)
        served = (head.publish_id, head.snapshot.ref.sha256.hex(), f"{head.checksum:032x}", head.records)
        some = 2 if state.parts else 4  # checksum and number of parts are not HEAD's
        if not same or known[:some] == served[:some]:
            return False
        if not self._may_go_back(state):
            raise _fork(state, head)
        return True

    def _keeper(self, state: State | None) -> Keeper:
        pins = None if state is None or self._terms.repin else state.pins
        return Keeper(key_sets(self._fetcher, self._patience), pins, self._terms.trust)

    def _accept(self, head: Head, answer: Answer) -> bool:
        """Verify the newest HEAD, and note what is to be remembered of it; False if it is to be passed over as older.

        Raises Untrusted. What is remembered is stored with the next state, or where that fails, by itself.
        """
        state, terms = self._copy.state, self._terms
        assert answer.data is not None
        verified = hashlib.sha256(answer.data).hexdigest()
        if state is not None:
            self._check_same(state, head)
            if self._is_older(state, head):
                self._pass_over(state, head, answer.data)
                return False
        if state is not None and state.verified == verified and not (terms.trust or terms.repin):
            pins = state.pins
        else:
            pins = self._keeper(state).accept(head, answer.data)
        if state is not None:
            self._check_seen(state, head)
        if (state is None or terms.repin) and not terms.allow_expired and self._is_past(head.expires):
            raise Untrusted(
                Distrust.EXPIRED,
                f"HEAD of {head.name!r} is expired: whoever serves it may hold back newer ones. Take it with --allow-expired",
            )
        self.met = state is None or terms.repin or bool(pins.key_set and not state.pins.key_set)
        self.accepted = {
            "pins": pins,
            "seen": head.order,
            "seen_as": identity(head),
            "verified": verified,
            "expires": head.expires,
            "behind": None,
        }
        return True

    def _is_past(self, expires: int | None) -> bool:
        return expires is not None and int(self._now()) > expires

    def _may_go_back(self, state: State) -> bool:
        """Whether the user said that history may be another one. A signed one can tell that itself, by a new epoch."""
        return self._terms.repin or (self._terms.overwrite and not state.pins.key_set)

    def _is_older(self, state: State, head: Head) -> bool:
        """Whether HEAD is older than the one that was seen, and not refused for being unsigned anyway."""
        unsigned = bool(state.pins.key_set) and not head.trust
        return head.order < state.seen and not self._may_go_back(state) and not unsigned

    def _pass_over(self, state: State, head: Head, data: bytes) -> None:
        """Pass over a HEAD that is older than one seen before: a cache lags behind, or somebody plays old ones back."""
        pins, keeper = state.pins, self._keeper(state)
        if self._terms.trust and not pins.key_set:
            keeper.accept(head, data)
        elif self._terms.trust:
            pins = keeper.proven(pins)
        really = "run `publisher restart`" if state.pins.key_set else "run `puller pull --overwrite`"
        self._notes.append(
            f"the host serves version {head.version} of epoch {head.epoch}, older than version {state.seen[1]} of epoch "
            f"{state.seen[0]} that was seen before; kept what is held. A cache may lag behind; if the dataset was "
            f"really set back, {really}"
        )
        current = int(self._now())
        behind = current if state.behind is None else min(state.behind, current)  # the clock may have been wrong
        if state.behind != behind or pins is not state.pins:
            self._copy.remember(behind=behind, pins=pins)

    def _check_same(self, state: State, head: Head) -> None:
        """Refuse another dataset; its kind is known once it was opened."""
        if state.dataset != head.name or head.kind not in ("", state.kind):
            raise Untrusted(
                Distrust.OTHER_DATASET,
                f"{self._copy.target.where} holds the dataset {state.dataset!r} of kind {state.kind}, the host serves "
                f"{head.name!r} of kind {head.kind or 'unknown'}; use another target",
            )
        if state.encryption != (head.encryption or ""):
            held, served = (f"encrypted with {id_}" if id_ else "plain" for id_ in (state.encryption, head.encryption))
            raise Untrusted(
                Distrust.OTHER_DATASET,
                f"{self._copy.target.where} holds {head.name!r} as it was published {held}; what the host serves is {served}. "
                "Nothing was changed. Ask the publisher; if that is meant, pull into another target",
            )

    def _check_seen(self, state: State, head: Head) -> None:
        """Refuse another HEAD for the version that was seen, though perhaps never held (SPEC 7.4)."""
        same = state.seen[:2] == head.order[:2] and state.seen_as not in ("", identity(head))
        if same and not self._may_go_back(state):
            raise _fork(state, head)


def first_met(found: list[Found], fetcher: Fetcher, terms: Terms, patience: Callable[[], Patience]) -> Head:
    """The HEAD by which a target is made, opened: of several the first that is right. Raises Untrusted, SecretError."""
    first: HeadwaterError | None = None
    for head, answer in found:
        try:
            assert head is not None
            assert answer.data is not None
            opened, _ = unlock(head, terms.secret)
            if len(found) > 1:
                Keeper(key_sets(fetcher, patience), None, terms.trust).accept(opened, answer.data)
        except (Invalid, SecretError) as error:
            first = first or error
        else:
            return opened
    assert first is not None
    raise first


def _fork(state: State, head: Head) -> Untrusted:
    word = (
        "run `puller pull --repin --trust KEY`"
        if state.pins.key_set
        else "to take the host's word, run `puller pull --overwrite`"
    )
    return Untrusted(
        Distrust.FORK,
        f"the host serves another version {head.version} of {head.name!r} than the one seen before: history was "
        f"forked. Ask the publisher; {word}",
    )
