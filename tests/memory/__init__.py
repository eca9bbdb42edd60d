"""Whole swarms in one process, on a virtual clock."""
