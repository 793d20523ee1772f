"""Sources: what queries are asked of, one file a kind; each is loaded only by an attempt that uses it."""
