"""Attention over a ragged batch: the rows of many sessions in one forward pass, each with its own cache and tree.

transformers calls this function in every block of every model that uses its attention interface. The rows of all
sessions lie one after the other in a batch of size 1, so that the linear layers run as one matrix product; only here
each session's rows meet their own keys.

Source: the interface, https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
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
        num_committed: slots of the committed path; every row sees them all.
        open_positions: int64 [open], where the token of each later slot stands in its text; the rows' come last.
        sees: bool [num_rows, open], the later slots that each row sees; None if the rows are a chain and each sees all
            that lie before it, and itself.
    """

    first: int
    num_rows: int
    cache: KVCache
    num_committed: int
    open_positions: NDArray[np.int64]
    sees: NDArray[np.bool_] | None = None
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, num_heads: int, window: int | None) -> Tensor | None:
        """What to add to the scores: [num_heads * num_rows, cache.num_tokens], 0 where a row sees a slot, else -inf.

        Made once for all blocks of a pass, and of numbers: torch would turn a mask of truths into one in every block.

        Args:
            num_heads: how many query heads share the heads of the keys; their rows follow each other.
            window: how many positions a row looks back, its own included; None for all.

        Returns:
            None if every row sees every slot.
        """
        if (num_heads, window) not in self._masks:
            mask = self._new_mask(window)
            self._masks[num_heads, window] = mask if mask is None else mask.repeat(num_heads, 1)
        return self._masks[num_heads, window]

    def _new_mask(self, window: int | None) -> Tensor | None:
        num_open = len(self.open_positions)
        own = self.open_positions[num_open - self.num_rows :]
        if window is not None and int(own.max()) < window:
            window = None  # it reaches back to the first token of all rows
        if window is None and (self.num_rows == 1 if self.sees is None else bool(self.sees.all())):
            return None
        visible = np.ones((self.num_rows, self.num_committed + num_open), dtype=np.bool_)
        visible[:, self.num_committed :] = (
            np.tri(self.num_rows, num_open, num_open - self.num_rows, dtype=np.bool_)
            if self.sees is None
            else self.sees
        )
        if window is not None:
            positions = np.concatenate([np.arange(self.num_committed), self.open_positions])
            visible &= positions > own[:, None] - window
        hidden = torch.from_numpy(~visible).to(self.cache.device)
        return torch.zeros(visible.shape, dtype=self.cache.dtype, device=self.cache.device).masked_fill_(
            hidden, -torch.inf
        )


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
        # Query heads that share a key head become rows of it, so that each key is read once.
        num_shared = query.shape[1] // keys.shape[0]
        own = query[0, :, rows].reshape(keys.shape[0], num_shared * segment.num_rows, -1).to(keys.dtype)
        mask = segment.mask(num_shared, sliding_window)
        if softcap is None and s_aux is None:
            mixed = scaled_dot_product_attention(own[None], keys[None], values[None], attn_mask=mask, scale=scaling)[0]
        else:
            mixed = _plain_attention(own, keys, values, mask, scaling, softcap, s_aux)
        out[0, rows] = mixed.reshape(query.shape[1], segment.num_rows, -1).transpose(0, 1)
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
    """Attention written out.

    Args:
        query: [kv_heads, heads / kv_heads * rows, dim].
        keys: [kv_heads, slots, dim].
        values: [kv_heads, slots, dim].
        mask: [heads / kv_heads * rows, slots], added to the scores.
        scaling: of the scores.
        softcap: their bound.
        s_aux: [heads], the sinks.

    Returns:
        The shape of ``query``.
    """
    scores = query @ keys.transpose(1, 2) * scaling  # [kv_heads, heads / kv_heads * rows, slots]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if s_aux is not None:
        num_rows = scores.shape[0] * scores.shape[1] // len(s_aux)
        sink = s_aux.to(scores.dtype).repeat_interleave(num_rows).view(*scores.shape[:2], 1)
        weights = torch.softmax(torch.cat([scores, sink], 2), 2, dtype=torch.float32)[:, :, :-1]
    else:
        weights = torch.softmax(scores, 2, dtype=torch.float32)
    return weights.to(values.dtype) @ values


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """Tell transformers to build no mask: the segments have theirs."""


AttentionInterface.register(NAME, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
