"""Ask a swarm one question from Python.

export SWARM_INITIAL_PEERS=/ip4/192.0.2.7/tcp/41311/p2p/12D3KooW...
python examples/ask.py "What is the capital of France?"
"""

from __future__ import annotations

import asyncio
import os
import sys

from routing.domain import SamplingParams
from swarm.client import SwarmClient
from swarm.models import EMBEDDED, ModelName, resolve
from swarm.tokenizer import Tokenizer


async def main(question: str) -> None:
    """Print the answer as it comes, then what it took."""
    folder = resolve(EMBEDDED, None, print)
    tokenizer = Tokenizer.load(folder.path)
    prompt = tokenizer.chat([{"role": "user", "content": question}])
    peers = os.environ["SWARM_INITIAL_PEERS"].split()
    async with (
        await SwarmClient.connect(ModelName.of(folder.name, folder.path), peers) as client,
        await client.open(len(prompt) + 200, SamplingParams(temperature=0.7, top_p=0.9, seed=1)) as conversation,
    ):
        text = tokenizer.stream()
        async for tokens in conversation.ask(prompt, 200, tokenizer.eos_ids):
            print(text.push(tokens), end="", flush=True)
        print(text.finish())
        print(f"{conversation.stats.tokens_per_second:.1f} tokens a second over {conversation.route}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What is the capital of France?"))
