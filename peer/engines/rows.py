"""Hidden states between tensors and the wire."""

from __future__ import annotations

import torch
from torch import Tensor

from peer.formats import ELEMENT_BYTES
from peer.torch_formats import name_of, torch_dtype
from routing.errors import WireError
from routing.messages import Rows


def to_wire(rows: Tensor) -> Rows:
    """[rows, width] as bytes, in its own format so that nothing is lost."""
    data = rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return Rows(name_of(rows.dtype), rows.shape[0], rows.shape[1], memoryview(data))


def from_wire(rows: Rows | None, num_rows: int, width: int) -> Tensor:
    """The tensor [num_rows, width] in the sender's format; a copy of the message's bytes.

    Raises:
        WireError: there are none, or not so many of this width.
    """
    if rows is None or rows.dtype not in ELEMENT_BYTES or (rows.num_rows, rows.width) != (num_rows, width):
        got = "none" if rows is None else f"{rows.num_rows} x {rows.width} {rows.dtype[:20]}"
        raise WireError(f"the wave needs {num_rows} rows of width {width}, it has {got}")
    if len(rows.data) != num_rows * width * ELEMENT_BYTES[rows.dtype]:
        raise WireError(f"{num_rows} x {width} {rows.dtype} are not {len(rows.data)} bytes")
    return torch.frombuffer(bytearray(rows.data), dtype=torch_dtype(rows.dtype)).view(num_rows, width)
