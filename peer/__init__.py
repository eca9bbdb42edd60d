"""A serving peer: loads a span, runs it for many sessions at once, verifies drafts at the end of the chain."""
