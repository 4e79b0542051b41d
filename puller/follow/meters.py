"""The metrics of followers, labelled by target."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from puller.console import rows_of
from puller.follow.poller import Poller
from puller.follow.record import lag_seconds, lag_versions
from puller.plan import Plan
from puller.service.job import Job
from puller.service.metrics import Registry
from puller.targets.base import State

_TARGET = ("target",)


class Meters:
    """Makes the metrics of all followers of a process in its registry."""

    def __init__(self, registry: Registry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        gauge, counter = registry.gauge, registry.counter
        self._of_state = {
            gauge("headwater_epoch", "The epoch of the version that is held.", _TARGET): lambda s: s.epoch,
            gauge("headwater_version", "The version that is held.", _TARGET): lambda s: s.version,
            gauge("headwater_records", "Records that are held.", _TARGET): lambda s: rows_of(s.records, s.kind),
            gauge("headwater_version_timestamp_seconds", "When the version that is held was published.", _TARGET): (
                lambda s: s.time
            ),
            gauge("headwater_newest_version", "The newest version that the host was seen to have.", _TARGET): (
                lambda s: s.seen[1]
            ),
            gauge(
                "headwater_lag_versions", "Versions between what is held and the newest one that was seen.", _TARGET
            ): lag_versions,
            gauge(
                "headwater_lag_seconds",
                "Age of the newest version that was seen, while it is not held; else 0.",
                _TARGET,
            ): lambda s: lag_seconds(s, self._now()),
            gauge("headwater_head_age_seconds", "Age of the newest HEAD that was seen.", _TARGET): (
                lambda s: self._now() - s.seen[2]
            ),
        }
        self._last_success = gauge(
            "headwater_last_success_timestamp_seconds", "When the last poll succeeded, in Unix seconds.", _TARGET
        )
        self._requests = counter("headwater_requests_total", "Requests to the host.", _TARGET)
        self._received = counter("headwater_received_bytes_total", "Bytes of bodies that the host sent.", _TARGET)
        self.polls = counter(
            "headwater_polls_total", "Polls, by what came of them: changed, unchanged, failed.", ("target", "result")
        )
        self.failures = counter(
            "headwater_failures_total", "Failed polls, by the class of the error.", ("target", "error")
        )
        self._plans = counter(
            "headwater_plans_total",
            "Steps to another version, by the way that was taken and why (`puller pull --dry-run` explains both).",
            ("target", "way", "reason"),
        )
        self.hooks = counter(
            "headwater_hooks_total",
            "Runs of a hook (exec, webhook), by what came of them: done, failed.",
            ("target", "hook", "result"),
        )

    def watch(self, target: str, poller: Poller, job: Job) -> None:
        """Tell of a follower from now on."""
        for metric, of in self._of_state.items():
            metric.follow(partial(_of, poller, of), target=target)
        self._last_success.follow(lambda: job.last_success, target=target)
        self._requests.follow(lambda: poller.fetcher.requests, target=target)
        self._received.follow(lambda: poller.fetcher.received, target=target)
        for result in ("unchanged", "changed", "failed"):
            self.polls.add(0, target=target, result=result)

    def planned(self, target: str, plan: Plan) -> None:
        """Count a step."""
        self._plans.add(target=target, way=plan.way, reason=plan.reason)


def _of(poller: Poller, of: Callable[[State], float | None]) -> float | None:
    return None if poller.state is None else of(poller.state)
