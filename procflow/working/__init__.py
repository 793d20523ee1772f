"""Working: what happens inside a worker."""
