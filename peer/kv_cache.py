"""Keys and values of one session in one span, in the order of its token tree.

The committed path lies first, in the order of the text; the open nodes follow in the order of their ids. So the slot of
every node follows from the tree, and a commit is one move of the few rows that stay.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class KVCache:
    """Takes memory as it is used, up to the tokens that the session was granted.

    On a CPU all that was granted is asked for at once: the system gives a page when it is first written, so no round
    pays for the context before it. A GPU gives what is asked for, but copies a hundred times as fast, so there the
    cache grows in chunks and moves.

    Args:
        first_layer: of the blocks that the session uses, as the attention modules count them.
        num_layers: how many it uses.
        num_kv_heads: of each block.
        head_dim: numbers in a key or value of one head.
        max_tokens: slots that may ever be used at once.
        chunk_tokens: memory is taken for so many slots at a time.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(
        self,
        first_layer: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        max_tokens: int,
        chunk_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._chunk_tokens = chunk_tokens
        self._first_layer = first_layer
        self.dtype = dtype
        self.device = device
        self._data = torch.empty((num_layers, 2, num_kv_heads, 0, head_dim), dtype=dtype, device=device)

    def reserve(self, num_new: int) -> None:
        """Make room for new slots at the end; they are written layer by layer.

        Raises:
            ValueError: more than ``max_tokens`` slots would be in use; nothing changes then.
        """
        needed = self.num_tokens + num_new
        if needed > self.max_tokens:
            raise ValueError(f"{needed} tokens are more than the {self.max_tokens} that this session was granted")
        if needed > self._data.shape[3]:
            capacity = min(self.max_tokens, -(-needed // self._chunk_tokens) * self._chunk_tokens)
            layers, two, heads, _, dim = self._data.shape
            data = torch.empty((layers, two, heads, capacity, dim), dtype=self.dtype, device=self.device)
            data[:, :, :, : self.num_tokens] = self._data[:, :, :, : self.num_tokens]
            self._data = data
        self.num_tokens = needed

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Fill the last slots of a layer. Both [kv_heads, rows, head_dim]; rows is at most what was reserved."""
        first = self.num_tokens - keys.shape[1]
        own = self._data[layer - self._first_layer]
        own[0, :, first : self.num_tokens] = keys
        own[1, :, first : self.num_tokens] = values

    def keys(self, layer: int) -> Tensor:
        """[kv_heads, num_tokens, head_dim]; a view."""
        return self._data[layer - self._first_layer, 0, :, : self.num_tokens]

    def values(self, layer: int) -> Tensor:
        """[kv_heads, num_tokens, head_dim]; a view."""
        return self._data[layer - self._first_layer, 1, :, : self.num_tokens]

    def keep(self, first: int, slots: NDArray[np.int64]) -> None:
        """From slot ``first`` on keep only ``slots`` [kept], in this order; they move up to ``first``.

        Raises:
            ValueError: a slot that is not in use would stay; nothing changes then.
        """
        num_kept = first + len(slots)
        if max(first, int(slots.max(initial=-1)) + 1) > self.num_tokens or int(slots.min(initial=first)) < first:
            raise ValueError(f"the cache has {self.num_tokens} tokens, not all that are to stay from {first} on")
        moved = np.flatnonzero(slots != np.arange(first, num_kept))
        if len(moved):
            start = int(moved[0])  # those before lie in their places already
            index = torch.from_numpy(slots[start:]).to(self.device)
            self._data[:, :, :, first + start : num_kept] = self._data.index_select(3, index)
        self.num_tokens = num_kept
