"""What a watching process tells Prometheus, by job."""

from __future__ import annotations

import time
from collections.abc import Callable

from puller.service.metrics import Registry


class Meters:
    """The metrics of `publisher watch`; the label `job` names the source and destination."""

    def __init__(self, registry: Registry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        label = ["job"]
        self.version = registry.gauge("headwater_version", "Version that is published.", label)
        self.epoch = registry.gauge("headwater_epoch", "Epoch of the published version.", label)
        self.attempts = registry.counter("headwater_attempts_total", "Publishes that were tried.", label)
        self.publishes = registry.counter("headwater_publishes_total", "Versions that were published.", label)
        self.failures = registry.counter(
            "headwater_failures_total",
            "Attempts that failed or were refused, by the class of the error.",
            [*label, "reason"],
        )
        self.changes = registry.counter("headwater_changes_total", "Records in the published changes.", label)
        self.written = registry.counter("headwater_written_bytes_total", "Stored bytes written.", label)
        self.refreshes = registry.counter("headwater_refreshes_total", "HEADs signed again before they expire.", label)
        self.collections = registry.counter("headwater_collections_total", "Garbage collections.", label)
        self.collected = registry.counter("headwater_collected_bytes_total", "Stored bytes removed by them.", label)
        self.collections_failed = registry.counter(
            "headwater_collections_failed_total", "Garbage collections that failed.", label
        )
        self.last_success = registry.gauge(
            "headwater_last_success_timestamp_seconds",
            "When the source was last found to be published, Unix seconds.",
            label,
        )
        self._full = registry.gauge("headwater_full_scan_age_seconds", "Seconds since everything was looked at.", label)

    def looked_at_everything(self, job: str, clock: Callable[[], float]) -> None:
        """The age counts from now, by a clock that never jumps."""
        began = clock()
        self._full.follow(lambda: clock() - began, job=job)
