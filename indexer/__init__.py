"""From embeddings to answers: the fold, the catalog, and the index that is searched."""
