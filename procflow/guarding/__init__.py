"""Guarding: no process outlives a run, and no two runs overlap."""
