"""Executors: where attempts run. ``base`` is the face, one file per backend, imported only when asked for."""
