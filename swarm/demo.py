"""``swarm demo``: one question to a swarm on this machine, answered twice: token by token, and with drafts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from peer.checkpoint import Checkpoint
from routing.domain import SamplingParams, Span
from routing.errors import ConfigError
from swarm.answers import Answer, ask
from swarm.client import ModelName, SwarmClient
from swarm.commands.generate import read_prompt, write
from swarm.local_swarm import LocalSwarm, PeerPlan, stop_fork_server
from swarm.models import ModelFolder
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer

NUM_PEERS = 3
QUESTION = """Copy this Python function and add a comment above each line:

```python
def average(numbers):
    total = 0
    count = 0
    for number in numbers:
        total = total + number
        count = count + 1
    return total / count
```
"""


async def demo(
    *,
    prompt: str,
    max_tokens: int,
    delay_ms: float,
    json_file: Path | None,
    folder: ModelFolder,
) -> int:
    """Run it; the exit status is 1 if the two texts differ."""
    if json_file is not None:
        _write_json(json_file, {})  # better a refusal now than after the answers
    tokenizer = Tokenizer.load(folder.path)
    checkpoint = Checkpoint.open(folder.path)
    tokens = read_prompt(tokenizer, prompt, is_chat=True)
    num_blocks = checkpoint.config.num_blocks
    cuts = [num_blocks * index // NUM_PEERS for index in range(NUM_PEERS + 1)]
    plans = [
        PeerPlan(folder.path, folder.name, Span(start, end), f"peer-{index}", delay_ms / 1000)
        for index, (start, end) in enumerate(pairwise(cuts), 1)
    ]
    name = ModelName.of(folder.name, folder.path)
    try:
        async with LocalSwarm(plans, _say) as swarm:
            _say(f"joining as a client; every message takes {delay_ms:g} ms one way")
            async with await SwarmClient.connect(name, swarm.initial_peers, delay_seconds=delay_ms / 1000) as client:
                plain = await _ask(client, tokenizer, tokens, max_tokens, 0, "token by token")
                drafted = await _ask(client, tokenizer, tokens, max_tokens, None, "with drafts")
    finally:
        stop_fork_server()
    report = _report(plain, drafted)
    _write_table(plain, drafted, report)
    if json_file is not None:
        _write_json(json_file, report)
    if plain.tokens != drafted.tokens:
        _say("the two texts differ: that is a bug")
        return 1
    return 0


async def _ask(
    client: SwarmClient, tokenizer: Tokenizer, tokens: list[int], max_tokens: int, speculation: int | None, how: str
) -> Answer:
    params = SamplingParams()
    async with await client.open(
        len(tokens) + max_tokens, params, speculation=Speculation(speculation)
    ) as conversation:
        _say(f"\n{how}, over {conversation.route}:")
        return await ask(conversation, tokenizer, tokens, max_tokens, write)


def _report(plain: Answer, drafted: Answer) -> dict[str, object]:
    def way(answer: Answer) -> dict[str, object]:
        return {
            "tokens_per_second": round(answer.stats.tokens_per_second, 3),
            "round_trips": answer.stats.num_round_trips,
            "text": answer.text,
            "num_tokens": answer.stats.num_tokens,
        }

    return {
        "autoregressive": way(plain),
        "speculative": way(drafted),
        "speedup": round(drafted.stats.tokens_per_second / max(1e-9, plain.stats.tokens_per_second), 3),
        "mean_acceptance_length": round(drafted.stats.mean_acceptance_length, 3),
        "equal": plain.tokens == drafted.tokens,
        "client_bytes_per_token": round(drafted.stats.bytes_per_token),
    }


def _write_table(plain: Answer, drafted: Answer, report: dict[str, object]) -> None:
    rows = [
        ("", "token by token", "with drafts"),
        ("tokens", f"{plain.stats.num_tokens}", f"{drafted.stats.num_tokens}"),
        ("tokens a second", f"{plain.stats.tokens_per_second:.1f}", f"{drafted.stats.tokens_per_second:.1f}"),
        ("round trips", f"{plain.stats.num_round_trips}", f"{drafted.stats.num_round_trips}"),
        (
            "tokens a round trip",
            f"{plain.stats.mean_acceptance_length:.2f}",
            f"{drafted.stats.mean_acceptance_length:.2f}",
        ),
        (
            "client's bytes a token",
            f"{plain.stats.bytes_per_token:.0f}",
            f"{report['client_bytes_per_token']}",
        ),
    ]
    _say("")
    for label, left, right in rows:
        _say(f"{label:24}{left:>16}{right:>16}")
    same = "the same text" if report["equal"] else "DIFFERENT texts"
    _say(f"\n{report['speedup']}x the speed, {same}")


def _write_json(file: Path, report: dict[str, object]) -> None:
    try:
        file.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"can't write {file}: {error.strerror}") from None


def _say(text: str) -> None:
    write(text + "\n")
