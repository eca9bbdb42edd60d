"""The ``swarm`` command."""

from __future__ import annotations

from typing import Annotated

import typer

from routing.version import __version__

app = typer.Typer(
    name="swarm",
    no_args_is_help=True,
    rich_markup_mode=None,  # errors and help are plain lines, in a pipe and a log too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"swarm {__version__}")
        raise typer.Exit


@app.callback()
def swarm(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Run one large language model on the machines of many people."""


def main() -> None:
    """Entry point of the ``swarm`` command."""
    app()
