"""A service with a large catalog: a query by both stages, and a reindex.

    python -m benchmarks.large [--windows 100000] [--seconds 20] [--kept WINDOWS] [--page docs/performance.md]

The catalog is filled past the worker with the demo's stems, windows by the clock and on the beats. Their embeddings
are the demo's, repeated with a little of each other, or those of `--kept`, a folder of `benchmarks.windows`: no two
of these are alike, as in a real catalog. What is asked are the demo's mixes of 8 s, at any tempo and in any key, then
as recorded. The encoder is timed in the same run, on as many windows as the worker counted.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import SECONDS as STEM_S
from benchmarks.bare import BareEncoder, compose, mixes
from benchmarks.installation import Installation, eventually
from benchmarks.page import page_parser, publish
from benchmarks.queries import SECONDS, SETTINGS, ask_all
from benchmarks.windows import WindowFiles
from indexer import Catalog, ClipFacts, StemMetadata, Upload
from model.audio import SAMPLE_RATE, load_clip
from model.audio.analysis import analyse
from model.audio.hearing import Hearing
from model.evaluation.results import markdown_table
from service.commands.client import Client
from service.search.in_process import DirectEmbedder
from service.settings import Settings
from service.work.laying import Laid, lay
from service.work.models import configured_model

SECTION, LONG, DISTINCT = "large-catalog", "large-catalog-of-long-stems", "large-distinct-catalog"
OTHER = 0.5  # of another window that is mixed into one: keys stay in the directions that music gives
READY_S = 600.0
STAGES = ("decode", "hear", "embed", "index", "rescore")


@dataclass(frozen=True, eq=False)
class Embedded:
    """A stem of the demo as a worker hands it to the catalog."""

    laid: Laid
    audible: NDArray[np.int64]
    embedding: NDArray[np.complex64]

    @property
    def starts_s(self) -> NDArray[np.float64]:
        starts_s: NDArray[np.float64] = np.concatenate([part.starts for part in self.laid.parts]) / SAMPLE_RATE
        return starts_s[self.audible]


Source = Callable[[Embedded, int], NDArray[np.complex64]]
"""Of a stem of the demo, and how many windows are there: the embeddings that stand for its own, of unit norm."""


def varied(known: Sequence[Embedded]) -> Source:
    """The demo's embeddings, each with a little of another."""
    every, rng = np.concatenate([one.embedding for one in known]), np.random.default_rng(0)

    def of(one: Embedded, _: int) -> NDArray[np.complex64]:
        moved = one.embedding + OTHER * every[rng.integers(len(every), size=len(one.embedding))]
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.complex64)

    return of


def distinct(kept: WindowFiles, windows: int) -> Source:
    """Kept windows, one after the other."""
    if len(kept) < windows:
        raise SystemExit(f"{len(kept):,} windows are kept, and {windows:,} are wanted")
    return lambda one, put: kept[put : put + len(one.embedding)]


async def embed_demo(tracks: Sequence[Sequence[Path]], settings: Settings, fingerprint: str) -> list[Embedded]:
    """The demo's stems, analysed and embedded as by a worker: windows by the clock, and on their beats."""
    embedder = DirectEmbedder(settings)
    found: list[Embedded] = []
    for track in tracks:
        waveforms = [load_clip(path).waveform for path in track]
        together = Hearing(np.sum(waveforms, axis=0))
        for waveform in waveforms:
            laid = lay(waveform, analyse(waveform, None, together), settings)
            found.append(Embedded(laid, *await embedder.stem(fingerprint, laid.waveform, laid.parts)))
    return found


async def fill(settings: Settings, fingerprint: str, known: Sequence[Embedded], windows: int, source: Source) -> int:
    """Put stems into an installation's catalog as its worker would, until there are so many windows; how many."""
    catalog = await Catalog.open(settings.resolved_database_url)
    put = number = 0
    try:
        await catalog.go_live(await catalog.new_generation(fingerprint), configured=fingerprint)
        while put < windows:
            one = known[number % len(known)]
            embedded = one.audible, one.starts_s, source(one, put), one.laid.beats[one.audible], one.laid.music
            await put_stem(catalog, number, len(one.laid.waveform) / SAMPLE_RATE, fingerprint, *embedded)
            put, number = put + len(one.audible), number + 1
        return put
    finally:
        await catalog.close()


async def put_stem(catalog: Catalog, number: int, seconds: float, fingerprint: str, *embedded: Any) -> None:
    """Put a stem of no audio into a catalog; `embedded`: as of `Catalog.store_embeddings`."""
    facts = ClipFacts("flac", seconds, SAMPLE_RATE, 1)
    _, (stem_id,) = await catalog.add([Upload(f"{number:064x}", f"{number}.flac", StemMetadata(), facts)])
    await catalog.store_embeddings((await catalog.stem(stem_id)).row, fingerprint, *embedded)


def measure(client: httpx.Client, url: str, bare: BareEncoder, cuts: list[bytes], windows: int) -> str:
    """A lone client's query, from anywhere on the beats and by the clock; and the reindex."""
    rows = []
    for align in ("beats", "search"):
        ask_all(client, cuts[:1], align, 1)  # the first one loads what is loaded once
        asked = ask_all(client, cuts, align, 1)
        each = max(1, round(asked.windows / len(cuts)))
        encoder_ms, p50 = bare.seconds(each) * 1000, float(np.median(asked.ms))
        stages = [f"{asked.stages.get(stage, 0.0):.0f}" for stage in STAGES]
        rows.append(
            [align, f"{windows:,}", f"{each}", f"{p50:.0f}", f"{encoder_ms:.0f}", f"{p50 / encoder_ms:.2f}", *stages]
        )
    began = time.perf_counter()
    with Client(url) as admin:
        assert admin.follow(admin.reindex(None, None))["problem"] is None
    rate = windows / (time.perf_counter() - began)
    header = ["align", "windows", "embedded for a query", "p50, ms", "the encoder alone, ms", "ratio", *STAGES]
    return markdown_table(header, rows) + f"\n{rate:,.0f} windows reindexed a second.\n"


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=STEM_S, help="of each stem")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--kept", type=Path, help="a folder of benchmarks.windows, of the model that ships")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(data=folder / "data")
        settings.data_folder.mkdir()
        model = configured_model(settings, "cpu")
        tracks = compose(folder / "demo", arguments.seconds)
        known = asyncio.run(embed_demo(tracks, settings, model.fingerprint))
        source = varied(known)
        if arguments.kept is not None:
            source = distinct(WindowFiles(arguments.kept), arguments.windows + max(len(one.embedding) for one in known))
        windows = asyncio.run(fill(settings, model.fingerprint, known, arguments.windows, source))
        bare = BareEncoder(settings, load_clip(tracks[0][0]).waveform)
        installation = Installation(folder, SETTINGS, client_timeout_s=READY_S).start(wait=False)
        try:
            eventually(installation.ready, READY_S)
            with installation.client() as client:
                cuts = mixes(tracks, arguments.queries, SECONDS)
                table = measure(client, installation.url, bare, cuts, windows)
        finally:
            installation.stop()
    repeated = SECTION if arguments.seconds == STEM_S else LONG
    publish(table, arguments.page, repeated if arguments.kept is None else DISTINCT)


if __name__ == "__main__":
    main()
