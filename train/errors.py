"""The one exception that a user's arguments can cause."""


class UsageError(Exception):
    """An argument that cannot be used: one line with the argument, its value and what to do."""
