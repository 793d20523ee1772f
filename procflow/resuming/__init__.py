"""Resuming: what an earlier run has done already, and whether it still holds."""
