"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swarm.models import EMBEDDED

MAX_DELAY_MS = 60_000.0

Model = Annotated[
    str,
    typer.Argument(help=f"The embedded model ({EMBEDDED}), a folder of safetensors, or a .gguf file.", metavar="MODEL"),
]
InitialPeers = Annotated[
    list[str],
    typer.Option(
        "--initial-peers",
        envvar="SWARM_INITIAL_PEERS",
        help="Address of a peer of the swarm to join, ending in /p2p/ID. May be given several times.",
    ),
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where imported models lie. Default: specswarm in the user's cache.")
]
Listen = Annotated[
    list[str], typer.Option("--listen", help="Where to listen, for example /ip4/0.0.0.0/tcp/4001. May be repeated.")
]
Announce = Annotated[
    list[str],
    typer.Option("--announce", help="Where others reach this machine, if not where it listens. May be repeated."),
]
IdentityFile = Annotated[
    Path | None,
    typer.Option("--identity", help="File with this peer's key; made if it is not there. Default: a new key."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to standard error.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Only the likeliest tokens that together reach this probability.")]
TopK = Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 for all.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text. Default: a new one.")]
SpeculationText = Annotated[
    str, typer.Option("--speculation", help="auto: as far as it pays; off; or a number of drafts to send each round.")
]
Delay = Annotated[
    float,
    typer.Option(
        "--delay-ms", help="Hold back all that is sent for so long, as a long line would.", min=0.0, max=MAX_DELAY_MS
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Of the answer, at most.", min=1)]
ShowStats = Annotated[bool, typer.Option("--stats", help="Say on standard error what the answer took.")]
