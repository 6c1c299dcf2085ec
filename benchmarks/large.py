"""A service with a large catalog: a query by both stages, and a reindex.

    python -m benchmarks.large [--windows 100000] [--page docs/performance.md]

The catalog is filled past the worker with the demo's embeddings, repeated with noise; what is asked are the demo's
mixes of 8 s. The encoder is timed in the same run, on as many windows as the worker counted.
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.bare import BareEncoder, mixes
from benchmarks.index_at_size import WINDOWS_EACH, Complex64, demo_embeddings, stems
from benchmarks.installation import Installation, eventually
from benchmarks.page import page_parser, publish
from benchmarks.queries import SECONDS, SETTINGS, ask_all
from indexer import Catalog, ClipFacts, StemMetadata, Upload
from model.audio import SAMPLE_RATE, load_clip
from model.evaluation.results import markdown_table
from service.commands.client import Client
from service.settings import Settings
from service.work.models import configured_model

SECTION = "large-catalog"
READY_S = 600.0
STAGES = ("decode", "hear", "embed", "index", "rescore")


async def fill(settings: Settings, fingerprint: str, embedding: Complex64, windows: int) -> None:
    """Put stems into an installation's catalog as its worker would."""
    catalog = await Catalog.open(settings.resolved_database_url)
    try:
        await catalog.go_live(await catalog.new_generation(fingerprint), configured=fingerprint)
        facts = ClipFacts("flac", WINDOWS_EACH * settings.stride_s + settings.window_s, SAMPLE_RATE, 1)
        for some in stems(embedding, windows):
            uploads = [Upload(f"{row:064x}", f"{row}.flac", StemMetadata(), facts) for row in some]
            _, stem_ids = await catalog.add(uploads)
            for stem_id, stem in zip(stem_ids, some.values(), strict=True):
                row = (await catalog.stem(stem_id)).row
                await catalog.store_embeddings(row, fingerprint, stem.windows, stem.starts_s, stem.embedding)
    finally:
        await catalog.close()


def measure(client: httpx.Client, url: str, bare: BareEncoder, cuts: list[bytes], windows: int) -> str:
    """One row: a lone client's query, and the reindex."""
    ask_all(client, cuts[:1], "search", 1)  # the first one loads what is loaded once
    asked = ask_all(client, cuts, "search", 1)
    each = max(1, round(asked.windows / len(cuts)))
    encoder_ms, p50 = bare.seconds(each) * 1000, float(np.median(asked.ms))
    began = time.perf_counter()
    with Client(url) as admin:
        assert admin.follow(admin.reindex(None, None))["problem"] is None
    rate = windows / (time.perf_counter() - began)
    stages = [f"{asked.stages.get(stage, 0.0):.0f}" for stage in STAGES]
    row = [f"{windows:,}", f"{each}", f"{p50:.0f}", f"{encoder_ms:.0f}", f"{p50 / encoder_ms:.2f}", *stages]
    header = ["windows", "embedded for a query", "p50, ms", "the encoder alone, ms", "ratio", *STAGES]
    return markdown_table([*header, "windows reindexed/s"], [[*row, f"{rate:,.0f}"]])


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=12)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(data=folder / "data")
        settings.data_folder.mkdir()
        model = configured_model(settings, "cpu")
        embedding, _ = demo_embeddings(folder / "demo")
        asyncio.run(fill(settings, model.fingerprint, embedding, arguments.windows))
        tracks = [sorted(track.glob("*.flac")) for track in sorted((folder / "demo").iterdir()) if track.is_dir()]
        bare = BareEncoder(settings, load_clip(tracks[0][0]).waveform)
        installation = Installation(folder, SETTINGS, client_timeout_s=READY_S).start(wait=False)
        try:
            eventually(installation.ready, READY_S)
            with installation.client() as client:
                cuts = mixes(tracks, arguments.queries, SECONDS)
                table = measure(client, installation.url, bare, cuts, arguments.windows)
        finally:
            installation.stop()
    publish(table, arguments.page, SECTION)


if __name__ == "__main__":
    main()
