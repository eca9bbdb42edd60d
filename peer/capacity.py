"""How much fits: the blocks that a peer can hold, and the KV cache beside them.

Known from the headers of the checkpoint alone, so that what can't be served is said before torch is loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from peer.checkpoint import Checkpoint
from routing.domain import Span
from routing.errors import ConfigError

MIN_KV_TOKENS = 8192
MAX_KV_TOKENS = 1 << 18
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """``6G``, ``512MiB`` or ``2.5 GB`` as bytes; every prefix is a power of 1024.

    Raises:
        ConfigError: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write it like 6G or 512M")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def format_bytes(num_bytes: int) -> str:
    """As people read it: ``1.5 GiB``."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def free_bytes(device: str) -> int:
    """Memory of the device that nobody uses now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        match = re.search(r"^MemAvailable:\s+([0-9]+) kB", meminfo.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def weights_bytes(checkpoint: Checkpoint, span: Span, element_bytes: float) -> int:
    """What a span's weights take, embedding and head included where the span has them."""
    ends = checkpoint.end_bytes(span.start == 0, span.end == checkpoint.config.num_blocks, element_bytes)
    return ends + sum(checkpoint.block_bytes(block, element_bytes) for block in range(span.start, span.end))


def num_blocks_that_fit(checkpoint: Checkpoint, max_bytes: int, element_bytes: float) -> int:
    """The most blocks that fit wherever they lie in the model, with room for a KV cache of ``MIN_KV_TOKENS``.

    Raises:
        ConfigError: not even one block fits.
    """
    whole = checkpoint.config.num_blocks
    if (
        weights_bytes(checkpoint, Span(0, whole), element_bytes) + _kv_bytes(checkpoint, whole, element_bytes)
        <= max_bytes
    ):
        return whole
    largest = max(checkpoint.block_bytes(block, element_bytes) for block in range(whole))
    ends = max(checkpoint.end_bytes(True, False, element_bytes), checkpoint.end_bytes(False, True, element_bytes))
    count = int((max_bytes - ends) // (largest + _kv_bytes(checkpoint, 1, element_bytes)))
    if count < 1:
        needed = ends + largest + _kv_bytes(checkpoint, 1, element_bytes)
        raise ConfigError(
            f"{format_bytes(max_bytes)} of memory hold no block of this model: one needs {format_bytes(needed)}; "
            "give more with --max-memory"
        )
    return min(count, whole)


def kv_tokens_that_fit(checkpoint: Checkpoint, span: Span, max_bytes: int, element_bytes: float) -> int:
    """Tokens of KV cache that fit beside the span's weights.

    Raises:
        ConfigError: fewer than ``MIN_KV_TOKENS``.
    """
    weights = weights_bytes(checkpoint, span, element_bytes)
    tokens = int((max_bytes - weights) // checkpoint.kv_bytes_per_token(len(span), element_bytes))
    if tokens < MIN_KV_TOKENS:
        needed = weights + _kv_bytes(checkpoint, len(span), element_bytes)
        raise ConfigError(
            f"the blocks {span} need {format_bytes(needed)} with a small KV cache, and {format_bytes(max_bytes)} is "
            "the limit: serve fewer blocks, or give more with --max-memory"
        )
    return min(tokens, MAX_KV_TOKENS)


def check_fits(checkpoint: Checkpoint, span: Span | None, max_bytes: int, element_bytes: float) -> None:
    """Can the span be served with so much memory, or any one block if it is None?

    Raises:
        ConfigError: it can't, or the model has no such blocks; the text says what would do.
    """
    whole = Span(0, checkpoint.config.num_blocks)
    if span is None:
        num_blocks_that_fit(checkpoint, max_bytes, element_bytes)
    elif not whole.covers(span):
        raise ConfigError(f"the model has the blocks {whole}, {span} is not among them")
    else:
        kv_tokens_that_fit(checkpoint, span, max_bytes, element_bytes)


def _kv_bytes(checkpoint: Checkpoint, num_blocks: int, element_bytes: float) -> int:
    return MIN_KV_TOKENS * checkpoint.kv_bytes_per_token(num_blocks, element_bytes)
