"""Scheduling: the rules of the scheduler by subject; ``procflow.scheduler`` is the whole. Pure."""
