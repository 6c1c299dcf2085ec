"""From embeddings to answers: the fold, the catalog, and the index that is searched."""

from indexer.build import FolderStore
from indexer.catalog import Catalog
from indexer.choice import IndexType, Limits
from indexer.fold import HermitianFold
from indexer.index import Index, IndexUnavailable
from indexer.keys import ApiKey, ApiKeyNotFound, ApiKeys
from indexer.live import IndexStore, LiveIndex, QdrantNotInstalled, open_store
from indexer.quotas import EVERYBODY, Charge, Quota, QuotaExceeded, Usage
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
    "EVERYBODY",
    "LARGEST_K",
    "Alias",
    "ApiKey",
    "ApiKeyNotFound",
    "ApiKeys",
    "BadCursor",
    "Candidates",
    "Catalog",
    "CatalogUnavailable",
    "Charge",
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
    "Quota",
    "QuotaExceeded",
    "Rejected",
    "Stem",
    "StemEmbeddings",
    "StemFilter",
    "StemMetadata",
    "StemNotFound",
    "Upload",
    "Usage",
    "align_all",
    "candidates",
    "open_store",
    "promising_places",
    "proven",
    "refine_offsets",
    "refined",
]
