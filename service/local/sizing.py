"""What a catalog takes on a machine, by what a small one was measured to take there.

Everything grows with its stems, their seconds, or their windows.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

MEASURED = Path(__file__).with_name("measured.json")
BUSY = 0.7  # of the cores that queries may take: at more they wait for each other
INDEX_SHARE = 0.25  # of the memory: the live index and the next one are held at a time, and others have needs
PROMPT_S = 1.0  # of all cores, for one query's keys: where comparing takes longer, the index is the bottleneck
PATIENT_H = 72.0  # an ingest of longer wants a card, or more machines
DISK = 2e12  # bytes that one box keeps


class NotMeasured(ValueError):
    """A file of figures that `python -m benchmarks.sizing --write` did not write."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} has no figures of a machine: {why}")
        self.path = path


@dataclass(frozen=True)
class Line:
    """What a stem takes: so much, and so much for each second of it."""

    stem: float
    second: float

    def of(self, stems: float, seconds: float) -> float:
        """For so many stems that last so many seconds together."""
        return stems * self.stem + seconds * self.second


@dataclass(frozen=True)
class Machine:
    """A machine's figures. Seconds are a core's; bytes of an index are those of its files, and of memory, too."""

    name: str
    cores: int
    memory_bytes: int
    windows: Line
    ingest_s: Line  # of API, workers and decoders
    sql_bytes: Line  # of a stem, and of a window
    audio_bytes: float  # of a second of audio
    index_bytes: dict[str, float]  # of a window, by kind of index
    busy: float  # share of the cores that an ingest keeps at work
    query_s: float  # of a search of 8 s, without comparing keys
    compare_s: dict[str, float]  # of a search, for each window of the index
    reindex_s: Line  # of a generation, and of a window

    @classmethod
    def read(cls, path: Path = MEASURED) -> Self:
        """Raises OSError, NotMeasured."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            for name in ("windows", "ingest_s", "sql_bytes", "reindex_s"):
                said[name] = Line(**said[name])
            return cls(**said)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NotMeasured(path, str(error)) from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Kind:
    """One kind of index at a size."""

    name: str
    bytes: float
    fits: bool  # into the machine's share
    query_s: float  # of a core, comparing included
    cores: float  # that the queries want


@dataclass(frozen=True)
class Plan:
    """What a catalog takes, and where it belongs."""

    windows: int
    sql_bytes: float
    audio_bytes: float
    kinds: list[Kind]
    ingest_core_h: float
    ingest_h: float  # on the machine, with a worker on each core
    reindex_h: float  # by the same model: one core
    workers: int  # of one thread each, that the queries keep at work
    advice: list[str]


def plan(machine: Machine, stems: int, minutes: float, queries_per_s: float) -> Plan:
    """Extrapolate.

    Args:
        stems: of the catalog.
        minutes: that each of them lasts.
        queries_per_s: searches with 8 s.
    """
    seconds = 60 * minutes * stems
    windows = max(0, round(machine.windows.of(stems, seconds)))
    kinds = []
    for name, each in machine.index_bytes.items():
        size, query_s = windows * each, machine.query_s + windows * machine.compare_s[name]
        fits = size <= INDEX_SHARE * machine.memory_bytes
        kinds.append(Kind(name, size, fits, query_s, queries_per_s * query_s / BUSY))
    core_h = machine.ingest_s.of(stems, seconds) / 3600
    hours = core_h / (machine.cores * machine.busy)
    sql, audio = machine.sql_bytes.of(stems, windows), seconds * machine.audio_bytes
    workers = math.ceil(queries_per_s * machine.query_s / BUSY)
    return Plan(
        windows=windows,
        sql_bytes=sql,
        audio_bytes=audio,
        kinds=kinds,
        ingest_core_h=core_h,
        ingest_h=hours,
        reindex_h=machine.reindex_s.of(1, windows) / 3600,
        workers=workers,
        advice=_advice(machine, kinds, sql + audio, hours, workers),
    )


def _advice(machine: Machine, kinds: list[Kind], disk: float, hours: float, workers: int) -> list[str]:
    """The steps of the runbook's plan of growth that this catalog is beyond."""
    steps = []
    if hours > PATIENT_H or workers > machine.cores:
        steps.append("a card, or workers on other machines: embedding takes more than this machine has")
    if disk > DISK or workers > machine.cores:
        steps.append("PostgreSQL and S3, so that several machines share them")
    slow = {kind.name: (kind.query_s - machine.query_s) / machine.cores for kind in kinds}
    if not any(kind.fits and slow[kind.name] <= PROMPT_S for kind in kinds):
        smallest, quickest = min(kind.bytes for kind in kinds), min(slow.values())
        shards = max(math.ceil(smallest / (INDEX_SHARE * machine.memory_bytes)), math.ceil(quickest / PROMPT_S))
        steps.append(f"Qdrant with {shards} shards on machines like this one: no index here both fits and is prompt")
    return steps or ["this machine alone"]


def told(count: float) -> str:
    """Bytes, as a person reads them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count:.0f} bytes"
