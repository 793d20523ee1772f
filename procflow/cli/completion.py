"""``procflow completion``: the lines that make a shell complete commands and options.

The completion itself is click's; this file only says how to switch it on.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from procflow.cli.output import out

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes SHELL complete procflow.

    \b
      bash   procflow completion bash >> ~/.bashrc
      zsh    procflow completion zsh >> ~/.zshrc
      fish   procflow completion fish > ~/.config/fish/completions/procflow.fish
    """
    from procflow.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    out(kind(cli, {}, "procflow", "_PROCFLOW_COMPLETE").source())
    return 0
