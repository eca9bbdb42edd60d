"""From the name of a model and some addresses to a client that talks to it."""

from __future__ import annotations

from peer.checkpoint import Checkpoint
from routing.errors import ConfigError
from swarm.client import SwarmClient
from swarm.commands.running import require_peers
from swarm.models import ModelFolder, ModelName


async def connect(folder: ModelFolder, initial_peers: list[str], delay_ms: float = 0.0) -> SwarmClient:
    """Join the swarm as a client.

    Raises:
        ConfigError: an address is none.
        SwarmError: no peer answers.
    """
    name = ModelName.of(folder.name, folder.path)
    return await SwarmClient.connect(name, require_peers(initial_peers), delay_seconds=delay_ms / 1000)


def longest_text(folder: ModelFolder) -> int | None:
    """Tokens that the model was made to read, if its config says so."""
    longest = Checkpoint.open(folder.path).config.get("max_position_embeddings")
    return longest if isinstance(longest, int) else None


def check_context(folder: ModelFolder, num_tokens: int, hint: str) -> None:
    """Does a text of so many tokens fit in what the model was made for? ``hint`` says what to do if not.

    Raises:
        ConfigError: it does not.
    """
    longest = longest_text(folder)
    if longest is not None and num_tokens > longest:
        raise ConfigError(
            f"{num_tokens} tokens of text and answer are more than the {longest} that {folder.name} can read: {hint}"
        )
