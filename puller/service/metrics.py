"""Metrics in Prometheus' text format (version 0.0.4). Pure: whoever serves or writes them does the I/O."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
Number = int | float


class Metric:
    """A family of samples, one for each combination of label values. Threads may share it.

    `labels` names the labels; every call gives a value for each of them, as text.
    """

    def __init__(self, name: str, kind: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name, self.kind, self.help, self.labels = name, kind, help_, tuple(labels)
        self._samples: dict[tuple[str, ...], Number | Callable[[], Number | None]] = {}
        self._lock = threading.Lock()

    def add(self, amount: Number = 1, **labels: str) -> None:
        """Count further; of a gauge, move it."""
        key = self._key(labels)
        with self._lock:
            before = self._samples.get(key, 0)
            assert not callable(before)
            self._samples[key] = before + amount

    def set(self, value: Number, **labels: str) -> None:
        """Take a value; a counter takes only one that its owner counts and that never falls."""
        with self._lock:
            self._samples[self._key(labels)] = value

    def follow(self, value: Callable[[], Number | None], **labels: str) -> None:
        """Ask `value` whenever metrics are read; None leaves the sample out. It may be called from any thread."""
        with self._lock:
            self._samples[self._key(labels)] = value

    def value(self, **labels: str) -> Number | None:
        """The value of one sample, or None where there is none."""
        found = self._samples.get(self._key(labels))
        return found() if callable(found) else found

    def _key(self, labels: dict[str, str]) -> tuple[str, ...]:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        return tuple(labels[name] for name in self.labels)

    def lines(self) -> list[str]:
        """HELP, TYPE and the samples; nothing where there is no sample."""
        with self._lock:
            samples = sorted(self._samples.items(), key=lambda item: item[0])
        found = [(key, value() if callable(value) else value) for key, value in samples]
        told = [f"{self.name}{self._labelled(key)} {_number(value)}" for key, value in found if value is not None]
        return [f"# HELP {self.name} {_escaped(self.help)}", f"# TYPE {self.name} {self.kind}", *told] if told else []

    def _labelled(self, key: tuple[str, ...]) -> str:
        pairs = [f'{name}="{_quoted(value)}"' for name, value in zip(self.labels, key, strict=True)]
        return f"{{{','.join(pairs)}}}" if pairs else ""


class Registry:
    """The metrics of a process, in the order in which they were made."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Metric:
        """A number that only grows while the process lives; its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends in _total, {name} does not")
        return self._made(Metric(name, "counter", help_, labels))

    def gauge(self, name: str, help_: str, labels: Sequence[str] = ()) -> Metric:
        """A number that may rise and fall."""
        return self._made(Metric(name, "gauge", help_, labels))

    def _made(self, metric: Metric) -> Metric:
        if not _NAME.match(metric.name) or metric.name in self._metrics:
            raise ValueError(f"{metric.name} is no name for a metric, or is taken")
        self._metrics[metric.name] = metric
        return metric

    def text(self) -> str:
        """All of them in the text format."""
        return "".join(f"{line}\n" for metric in self._metrics.values() for line in metric.lines())


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int) else repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"").encode("utf-8", "backslashreplace").decode()
