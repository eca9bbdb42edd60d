"""Keys and values of one session in one span, in the order of its token tree.

The committed path lies first, in the order of the text; the open nodes follow in the order of their ids. So the slot of
every node follows from the tree, and a commit is one move of the few rows that stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_TOKENS = 256


class KVCache:
    """Grows as it is used, up to the tokens that the session was granted.

    Args:
        first_layer: of the blocks that the session uses, as the attention modules count them.
        num_layers: how many it uses.
        num_kv_heads: of each block.
        head_dim: numbers in a key or value of one head.
        max_tokens: slots that may ever be used at once.
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
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._first_layer = first_layer
        self._dtype = dtype
        self._device = device
        self._shape = (num_layers, 2, num_kv_heads, 0, head_dim)
        self._data = torch.empty(self._shape, dtype=dtype, device=device)

    def reserve(self, num_new: int) -> None:
        """Make room for new slots at the end; they are written layer by layer.

        Raises:
            ValueError: more than ``max_tokens`` slots would be in use; nothing changes then.
        """
        needed = self.num_tokens + num_new
        if needed > self.max_tokens:
            raise ValueError(f"{needed} tokens are more than the {self.max_tokens} that this session was granted")
        capacity = self._data.shape[3]
        if needed > capacity:
            layers, two, heads, _, dim = self._shape
            capacity = min(self.max_tokens, max(FIRST_TOKENS, 2 * capacity, needed))
            data = torch.empty((layers, two, heads, capacity, dim), dtype=self._dtype, device=self._device)
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

    def keep(self, first: int, slots: Sequence[int]) -> None:
        """From slot ``first`` on keep only ``slots``, in this order; they move up to ``first``."""
        if list(slots) != list(range(first, first + len(slots))):
            index = torch.tensor(slots, dtype=torch.long, device=self._device)
            self._data[:, :, :, first : first + len(slots)] = self._data.index_select(3, index)
        self.num_tokens = first + len(slots)
