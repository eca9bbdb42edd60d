"""Errors that a caller may meet: ``SwarmError`` > ``ConfigError``."""

from __future__ import annotations


class SwarmError(Exception):
    """Whatever this project raises on purpose."""


class ConfigError(SwarmError):
    """What the user gave can't work; the message says what to do."""
