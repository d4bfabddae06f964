"""The exception for mistakes that the user can correct, and the errors of others in one line."""


class UserError(Exception):
    """A mistake in the user's input; the command line prints it without a traceback and exits with 2.

    `message` describes what was wrong and where (key or file, rule, value received), `hint` what would be right.
    Each is one line; a report of several mistakes has one line per mistake.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
