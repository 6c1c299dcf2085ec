"""From embeddings to answers: the fold, the catalog, and the index that is searched."""

from indexer.build import build_snapshot, snapshot_folder
from indexer.catalog import Catalog
from indexer.fold import HermitianFold
from indexer.index import Index
from indexer.live import IndexUnavailable, LiveIndex
from indexer.records import (
    Alias,
    BadCursor,
    CatalogUnavailable,
    ClipFacts,
    Job,
    JobItem,
    JobNotFound,
    NothingToRollBackTo,
    NulInText,
    Rejected,
    Stem,
    StemEmbeddings,
    StemFilter,
    StemMetadata,
    StemNotFound,
    Upload,
)
from indexer.search import (
    LARGEST_K,
    Candidates,
    Place,
    QueryWindows,
    align_all,
    candidates,
    promising_places,
    proven,
    refine_offsets,
    refined,
)
from indexer.snapshot import Snapshot

__all__ = [
    "LARGEST_K",
    "Alias",
    "BadCursor",
    "Candidates",
    "Catalog",
    "CatalogUnavailable",
    "ClipFacts",
    "HermitianFold",
    "Index",
    "IndexUnavailable",
    "Job",
    "JobItem",
    "JobNotFound",
    "LiveIndex",
    "NothingToRollBackTo",
    "NulInText",
    "Place",
    "QueryWindows",
    "Rejected",
    "Snapshot",
    "Stem",
    "StemEmbeddings",
    "StemFilter",
    "StemMetadata",
    "StemNotFound",
    "Upload",
    "align_all",
    "build_snapshot",
    "candidates",
    "promising_places",
    "proven",
    "refine_offsets",
    "refined",
    "snapshot_folder",
]
