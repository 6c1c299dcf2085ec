"""From bytes to embeddings: decode an upload, keep its audio, queue it, embed its windows."""
