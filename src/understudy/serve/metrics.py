"""Counters and histograms in the text format of Prometheus."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metric:
    """A counter or a gauge, with one value for each combination of labels.

    Args:
        kind: "counter" or "gauge".
    """

    def __init__(self, name: str, help: str, kind: str = "counter"):
        self.name, self.help, self.kind = name, help, kind
        self.values: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, **labels: str) -> None:
        """Adds to the value."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self.values[key] = self.values.get(key, 0) + amount

    def set(self, value: float, **labels: str) -> None:
        """Replaces all values by one."""
        with self._lock:
            self.values = {tuple(sorted(labels.items())): value}

    def lines(self) -> list[str]:
        """Returns the lines of the metric in Prometheus's text format."""
        with self._lock:
            values = dict(self.values)
        return [f"{self.name}{_labels(key)} {_number(value)}" for key, value in sorted(values.items())]


class Histogram:
    """Histogram metric: counts of values below each bound.

    Args:
        bounds: Upper bounds, ascending.
    """

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float] = SECONDS):
        self.name, self.help, self.bounds = name, help, tuple(bounds)
        self.counts, self.sum = [0] * (len(self.bounds) + 1), 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Adds a value."""
        with self._lock:
            self.counts[bisect.bisect_left(self.bounds, value)] += 1
            self.sum += value

    def lines(self) -> list[str]:
        """Returns the lines of the metric in Prometheus's text format."""
        with self._lock:
            counts, total = list(self.counts), self.sum
        below, lines = 0, []
        for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
            below += count
            lines.append(f'{self.name}_bucket{{le="{"+Inf" if bound == float("inf") else _number(bound)}"}} {below}')
        return [*lines, f"{self.name}_sum {_number(total)}", f"{self.name}_count {below}"]


class ServerMetrics:
    """The metrics of a server."""

    def __init__(self):
        p = "understudy_"
        self.requests = Metric(p + "requests_total", "Requests by the kind of reply.")
        self.fallbacks = Metric(p + "fallbacks_total", "Replies that missed their deadline, by what was sent instead.")
        self.refused = Metric(p + "refused_total", "Connections that were refused, by reason.")
        self.malformed = Metric(p + "malformed_total", "Messages that could not be read.")
        self.slowed = Metric(p + "slowed_total", "Requests that waited for the limit of the rate.")
        self.reloads = Metric(p + "reloads_total", "Checkpoints that were loaded while serving, by result.")
        self.clients = Metric(p + "clients", "Connected clients.", "gauge")
        self.checkpoint = Metric(p + "checkpoint_info", "The checkpoint that plans.", "gauge")
        self.inference = Histogram(p + "inference_seconds", "Time of one batch in the policy, with its checks.")
        self.overhead = Histogram(p + "overhead_seconds", "Time from a request to its reply without the policy's.")
        self.latency = Histogram(p + "request_seconds", "Time from a request to its reply.")
        self.batch = Histogram(p + "batch_size", "Requests that were planned together.", SIZES)
        self.delay = Histogram(p + "client_delay_steps", "Delays that clients measured, in steps.", (0, *SIZES))
        for metric in (self.malformed, self.slowed):
            metric.add(0)
        self.clients.set(0)

    def text(self) -> str:
        """Returns the page that Prometheus reads."""
        out = []
        for metric in vars(self).values():
            out += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(out) + "\n"


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    def escape(text):
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return "{" + ",".join(f'{name}="{escape(str(value))}"' for name, value in key) + "}" if key else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
