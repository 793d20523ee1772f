"""Showing: what people and programs are told of a run and of a pipeline."""
