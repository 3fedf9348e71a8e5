"""What a user's arguments can cause, and how any error is said in one line."""


class UsageError(Exception):
    """An argument that cannot be used: one line with the argument, its value and what to do."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, with its kind where the message alone says little."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    told = isinstance(error, ValueError | TypeError | RuntimeError | OSError)
    return lines[0] if told else f"{lines[0]} ({type(error).__name__})"
