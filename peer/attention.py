"""Attention over a ragged batch: the rows of many sessions in one forward pass, each with its own cache and tree.

transformers calls this function in every block of every model that uses its attention interface. The rows of all
sessions lie one after the other in a batch of size 1, so that the linear layers run as one matrix product; only here
each session's rows meet their own keys.

Source: the interface, https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from peer.kv_cache import KVCache

NAME = "specswarm_tree"


@dataclass(slots=True)
class Segment:
    """One session's rows in a pass.

    Attributes:
        first: its first row in the pass.
        num_rows: how many rows it has; they are the last slots of its cache.
        cache: its keys and values, with room reserved for the rows.
        mask: bool [num_rows, cache.num_tokens], what each row sees; None if every row sees everything.
        positions: int64 [cache.num_tokens], where each slot's token stands in its text.
    """

    first: int
    num_rows: int
    cache: KVCache
    mask: Tensor | None
    positions: Tensor
    _windows: dict[int, Tensor] = field(default_factory=dict)

    def mask_within(self, window: int | None) -> Tensor | None:
        """The mask of a block that sees only the last ``window`` positions (None: all of them)."""
        if window is None or len(self.positions) == 0:
            return self.mask
        if window not in self._windows:
            own = self.positions[-self.num_rows :]
            near = self.positions[None, :] > own[:, None] - window
            self._windows[window] = near if self.mask is None else near & self.mask
        return self._windows[window]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float,
    segments: Sequence[Segment],
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: object,
) -> tuple[Tensor, None]:
    """Each session's new rows against all that its cache holds.

    Args:
        module: the block's attention; ``layer_idx`` counts from the span's first block.
        query: [1, heads, rows, head_dim].
        key: [1, kv_heads, rows, head_dim].
        value: [1, kv_heads, rows, head_dim].
        _attention_mask: always None: the segments have the masks.
        scaling: of the products of queries and keys.
        segments: the sessions, in the order of their rows.
        sliding_window: positions that the block looks back, its own included.
        softcap: bound of the scores, as Gemma 2 has it.
        s_aux: [heads] scores of a sink that takes weight and gives nothing, as GPT-OSS has it.

    Returns:
        [1, rows, heads, head_dim].
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = torch.empty(
        query.shape[0], query.shape[2], query.shape[1], value.shape[3], dtype=query.dtype, device=query.device
    )
    for segment in segments:
        rows = slice(segment.first, segment.first + segment.num_rows)
        segment.cache.write(layer, key[0, :, rows], value[0, :, rows])
        keys, values = segment.cache.keys(layer), segment.cache.values(layer)
        mask = segment.mask_within(sliding_window)
        if softcap is None and s_aux is None:
            mixed = scaled_dot_product_attention(
                query[:, :, rows], keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=True
            )[0]
        else:
            mixed = _plain_attention(query[0, :, rows], keys, values, mask, scaling, softcap, s_aux)
        out[0, rows] = mixed.transpose(0, 1)
    return out, None


def _plain_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Attention written out: query [heads, rows, dim], keys and values [kv_heads, slots, dim]."""
    groups = query.shape[0] // keys.shape[0]
    scores = query @ keys.repeat_interleave(groups, 0).transpose(1, 2) * scaling  # [heads, rows, slots]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if s_aux is not None:
        sink = s_aux.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.softmax(torch.cat([scores, sink], 2), 2, dtype=torch.float32)[:, :, :-1]
    else:
        weights = torch.softmax(scores, 2, dtype=torch.float32)
    return weights.to(values.dtype) @ values.repeat_interleave(groups, 0)


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """Tell transformers to build no mask: the segments have theirs."""


AttentionInterface.register(NAME, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
