"""Benching: ``procflow bench``: every step of a pipeline on every local executor, and which one suits it and why."""
