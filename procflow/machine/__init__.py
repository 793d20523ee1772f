"""Machine: what this computer has and what processes use of it."""
