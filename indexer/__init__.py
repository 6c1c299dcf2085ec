"""From embeddings to answers: the fold, the catalog, and the index that is searched."""

from indexer.build import FolderStore
from indexer.catalog import Catalog
from indexer.choice import IndexType, Limits
from indexer.fold import HermitianFold
from indexer.index import Index, IndexUnavailable
from indexer.live import IndexStore, LiveIndex, QdrantNotInstalled, open_store
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

__all__ = [
    "LARGEST_K",
    "Alias",
    "BadCursor",
    "Candidates",
    "Catalog",
    "CatalogUnavailable",
    "ClipFacts",
    "FolderStore",
    "HermitianFold",
    "Index",
    "IndexStore",
    "IndexType",
    "IndexUnavailable",
    "Job",
    "JobItem",
    "JobNotFound",
    "Limits",
    "LiveIndex",
    "NothingToRollBackTo",
    "NulInText",
    "Place",
    "QdrantNotInstalled",
    "QueryWindows",
    "Rejected",
    "Stem",
    "StemEmbeddings",
    "StemFilter",
    "StemMetadata",
    "StemNotFound",
    "Upload",
    "align_all",
    "candidates",
    "open_store",
    "promising_places",
    "proven",
    "refine_offsets",
    "refined",
]
