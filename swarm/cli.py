"""The ``swarm`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routing.version import __version__
from swarm.commands.options import (
    MAX_DELAY_MS,
    Announce,
    CacheDir,
    Delay,
    IdentityFile,
    InitialPeers,
    Listen,
    MaxTokens,
    Model,
    Seed,
    ShowStats,
    SpeculationText,
    Temperature,
    TopK,
    TopP,
    Verbose,
)
from swarm.commands.running import find_model, read_speculation, run, sampling
from swarm.models import EMBEDDED

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


@app.command()
def bootstrap(
    listen: Listen = ["/ip4/0.0.0.0/tcp/4001"],  # noqa: B006
    announce: Announce = [],  # noqa: B006
    initial_peers: InitialPeers = [],  # noqa: B006
    identity: IdentityFile = None,
    verbose: Verbose = False,
) -> None:
    """Be a meeting place: keep the records of others, serve no blocks."""
    from swarm.commands.bootstrap import bootstrap as command

    run(lambda: command(listen, announce, initial_peers, identity), is_verbose=verbose)


@app.command()
def serve(
    model: Model = EMBEDDED,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks to serve, as START:END. Default: those that the swarm needs most.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="For weights and KV cache together, like 6G. Default: half of what is free.")
    ] = None,
    initial_peers: InitialPeers = [],  # noqa: B006
    listen: Listen = ["/ip4/0.0.0.0/tcp/0"],  # noqa: B006
    announce: Announce = [],  # noqa: B006
    identity: IdentityFile = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    cache_dir: CacheDir = None,
    name: Annotated[str, typer.Option(help="Shown in `swarm status`.")] = "",
    delay_ms: Delay = 0.0,
    verbose: Verbose = False,
) -> None:
    """Join a swarm as a serving peer, or start a new one."""
    from swarm.commands.serve import serve as command

    run(
        lambda: command(
            model,
            blocks=blocks,
            max_memory=max_memory,
            initial_peers=initial_peers,
            listen=listen,
            announce=announce,
            identity_file=identity,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            name=name,
            delay_ms=delay_ms,
        ),
        is_verbose=verbose,
    )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.", metavar="PROMPT")],
    initial_peers: InitialPeers = [],  # noqa: B006
    as_chat: Annotated[bool, typer.Option("--chat", help="The prompt is a question: apply the chat template.")] = False,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    speculation: SpeculationText = "auto",
    stats: ShowStats = False,
    cache_dir: CacheDir = None,
    delay_ms: Delay = 0.0,
    verbose: Verbose = False,
) -> None:
    """Continue a text through the swarm."""
    from swarm.commands.generate import generate as command

    run(
        lambda: command(
            model,
            prompt,
            initial_peers=initial_peers,
            is_chat=as_chat,
            params=sampling(temperature, top_k, top_p, seed),
            max_tokens=max_tokens,
            speculation=read_speculation(speculation),
            shows_stats=stats,
            cache_dir=cache_dir,
            delay_ms=delay_ms,
        ),
        is_verbose=verbose,
    )


@app.command()
def chat(
    model: Model = EMBEDDED,
    initial_peers: InitialPeers = [],  # noqa: B006
    max_tokens: MaxTokens = 512,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of the whole chat, if the peers have room for so many. Default: 4096.", min=16),
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    speculation: SpeculationText = "auto",
    stats: ShowStats = False,
    cache_dir: CacheDir = None,
    delay_ms: Delay = 0.0,
    verbose: Verbose = False,
) -> None:
    """Chat through the swarm. Ctrl-C stops an answer, Ctrl-D ends."""
    from swarm.commands.chat import chat as command

    run(
        lambda: command(
            model,
            initial_peers=initial_peers,
            params=sampling(temperature, top_k, top_p, seed),
            max_tokens=max_tokens,
            context=context,
            speculation=read_speculation(speculation),
            shows_stats=stats,
            cache_dir=cache_dir,
            delay_ms=delay_ms,
        ),
        is_verbose=verbose,
    )


@app.command()
def status(
    model: Model = EMBEDDED,
    initial_peers: InitialPeers = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    cache_dir: CacheDir = None,
    delay_ms: Delay = 0.0,
    verbose: Verbose = False,
) -> None:
    """Who serves which blocks, and which are missing."""
    from swarm.commands.status import status as command

    run(
        lambda: command(model, initial_peers=initial_peers, is_json=as_json, cache_dir=cache_dir, delay_ms=delay_ms),
        is_verbose=verbose,
    )


@app.command()
def demo(
    prompt: Annotated[str | None, typer.Option(help="The question. Default: to rewrite a short function.")] = None,
    max_tokens: MaxTokens = 64,
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", help="One way, on every link.", min=0.0, max=MAX_DELAY_MS)
    ] = 50.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    cache_dir: CacheDir = None,
    verbose: Verbose = False,
) -> None:
    """A swarm on this machine: one question, answered token by token and with drafts."""

    async def command() -> int:
        folder = find_model(EMBEDDED, cache_dir)
        from swarm.demo import QUESTION
        from swarm.demo import demo as run_demo

        question = QUESTION if prompt is None else prompt
        return await run_demo(
            prompt=question, max_tokens=max_tokens, delay_ms=delay_ms, json_file=json_file, folder=folder
        )

    run(command, is_verbose=verbose)


def main() -> None:
    """Entry point of the ``swarm`` command."""
    app()
