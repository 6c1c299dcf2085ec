"""What /metrics tells, in one registry an app."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from indexer import Index

STAGE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and clocks of the API process, and a view of the queue, the workers, the catalog and the index."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, buckets=STAGE_BUCKETS, registry=self.registry)
        labels = ["method", "route", "status"]
        self.requests = Counter("phalar_http_requests", "Requests by route and status", labels, registry=self.registry)
        self.request_seconds = seconds("phalar_http_request_seconds", "Time to answer by route", ["route"])
        self.stage_seconds = seconds("phalar_retrieval_stage_seconds", "Time of each stage of a retrieval", ["stage"])
        self._queue_up = gauge("phalar_queue_up", "1: Redis answers; 0: it is away")
        self._depth = gauge("phalar_queue_depth", "Jobs waiting or in work", ["kind"])
        self._stems = gauge("phalar_stems", "Stems by state", ["state"])
        self._index = gauge("phalar_index", "The live index", ["what"])
        self._worker_stats: dict[str, dict[str, float | str]] = {}
        self.registry.register(self)
        ProcessCollector(registry=self.registry)  # memory, CPU time and open files of the API process

    def collect(self) -> Iterator[Any]:
        """The workers' own figures, as they last reported them; called by the registry."""
        family = GaugeMetricFamily("phalar_worker", "What each worker last reported", labels=["worker", "figure"])
        device = GaugeMetricFamily(
            "phalar_worker_device", "What each worker embeds on", labels=["worker", "device", "driver"]
        )
        for worker, figures in self._worker_stats.items():
            for figure, value in figures.items():
                if not isinstance(value, str):
                    family.add_metric([worker, figure], value)
            device.add_metric([worker, str(figures.get("device", "")), str(figures.get("driver", ""))], 1)
        yield family
        yield device

    def exposition(
        self,
        *,
        depths: dict[Any, int],
        stems: dict[str, int],
        workers: dict[str, dict[str, float | str]],
        index: Index | None,
    ) -> bytes:
        """Prometheus text, with the state of the moment; no depths say that Redis is away."""
        self._queue_up.set(bool(depths))
        self._depth.clear()  # an old depth would look like a queue that stands still
        for kind, depth in depths.items():
            self._depth.labels(kind).set(depth)
        for state, count in stems.items():
            self._stems.labels(state).set(count)
        if index is not None:
            self._index.labels("generation").set(index.generation)
            self._index.labels("windows").set(index.windows)
            self._index.labels("fresh_windows").set(index.fresh_windows)
        self._worker_stats = workers
        return generate_latest(self.registry)


class Stopwatch:
    """The time of one request's stages, in milliseconds by stage."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body; a stage that comes twice adds up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._ms[name] = self._ms.get(name, 0.0) + (time.perf_counter() - began) * 1000

    def done(self) -> dict[str, float]:
        """Every stage and `total`; recorded in the metrics."""
        times = self._ms | {"total": (time.perf_counter() - self._began) * 1000}
        for stage, ms in times.items():
            self._metrics.stage_seconds.labels(stage).observe(ms / 1000)
        return {stage: round(ms, 3) for stage, ms in times.items()}


@dataclass
class Figures:
    """What a worker has done since it started; reported with each beat and shown by /metrics."""

    decode_seconds: float = 0.0
    analyse_seconds: float = 0.0
    embed_seconds: float = 0.0
    store_seconds: float = 0.0
    batches: int = 0
    windows: int = 0
    stems: int = 0
    stems_failed: int = 0
    queries: int = 0
    queries_failed: int = 0
    batch_limit: int = 0
    in_hand: int = 0
    last_beat: float = 0.0
    pid: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - begun)
