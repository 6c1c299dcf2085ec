"""What is derived from the catalog and can be built again: keys to search, and the index that answers."""
