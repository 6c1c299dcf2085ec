"""How the catalog's schema came to be, one file of `versions` a change; `indexer.catalog.schema` runs them."""
