"""How numbers are held: the one table of names and sizes. Pure; ``peer.torch_formats`` has them as torch does."""

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by the name that people, records and messages use."""
