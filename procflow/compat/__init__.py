"""Compat: Python shapes of other systems as thin layers over procflow's own pipelines.

Each module here builds a ``Pipeline`` and runs it; what the shapes mean is said by the dialect of the same name.
"""
