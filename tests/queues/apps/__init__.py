"""What the workers of this folder have in common."""

MAX_SIZE = 2
"""Of each pool."""
