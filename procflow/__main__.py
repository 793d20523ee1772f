"""``python -m procflow``: the same as the ``procflow`` command."""

from __future__ import annotations

from procflow.cli import main

if __name__ == "__main__":
    main(prog_name="python -m procflow")
