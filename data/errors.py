"""The one exception for mistakes that a person can mend."""


class UserError(Exception):
    """A mistake in what the user gave; the command line prints it without a traceback and exits with 2.

    `message` says what was wrong and where (key or file, rule, value received); `hint` says what would be
    right. Each is one line, except that a report of several mistakes has one line per mistake.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message
