"""Hidden states between tensors and the wire."""

from __future__ import annotations

import torch
from torch import Tensor

from routing.errors import WireError
from routing.messages import Rows

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def to_wire(rows: Tensor) -> Rows:
    """[rows, width] as bytes, in its own dtype so that nothing is lost."""
    data = rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return Rows(_NAMES[rows.dtype], rows.shape[0], rows.shape[1], memoryview(data))


def from_wire(rows: Rows | None, num_rows: int, width: int) -> Tensor:
    """The tensor [num_rows, width] in the sender's dtype; it shares the message's memory.

    Raises:
        WireError: there are none, or not so many of this width.
    """
    if rows is None or rows.dtype not in _DTYPES or (rows.num_rows, rows.width) != (num_rows, width):
        got = "none" if rows is None else f"{rows.num_rows} x {rows.width} {rows.dtype[:20]}"
        raise WireError(f"the wave needs {num_rows} rows of width {width}, it has {got}")
    dtype = _DTYPES[rows.dtype]
    if len(rows.data) != num_rows * width * dtype.itemsize:
        raise WireError(f"{num_rows} x {width} {rows.dtype} are not {len(rows.data)} bytes")
    return torch.frombuffer(bytearray(rows.data), dtype=dtype).view(num_rows, width)
