"""From embeddings to answers: the fold, the catalog, and the index that is searched. Here: what the service uses."""

from indexer import search
from indexer.catalog.catalog import Catalog
from indexer.catalog.keys import ApiKey, ApiKeys
from indexer.catalog.quotas import Charge, Quota, QuotaExceeded
from indexer.catalog.records import (
    Alias,
    ApiKeyNotFound,
    BadCursor,
    CatalogError,
    CatalogUnavailable,
    ClipFacts,
    FactSource,
    Job,
    JobNotFound,
    Kind,
    LiveMoved,
    NothingToRollBackTo,
    NulInText,
    Rejected,
    SaidMusic,
    SearchNotFound,
    Stem,
    StemEmbeddings,
    StemFilter,
    StemJob,
    StemMetadata,
    StemMusic,
    StemNotFound,
    TooManySearches,
    Upload,
)
from indexer.diagonals import BestPlaces, Place, QueryWindows, best_places
from indexer.index.build import FolderStore, Report
from indexer.index.choice import IndexType, Limits
from indexer.index.fold import HermitianFold, RankOutOfRange
from indexer.index.index import Index, IndexUnavailable
from indexer.index.keys import ANY_STEM, CHROMA, HAS_CHROMA, LOG_WINDOWS, TRAITS
from indexer.index.live import IndexStore, LiveIndex, open_store
