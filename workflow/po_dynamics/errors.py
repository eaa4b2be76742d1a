"""The one exception for everything a user can mend."""


class InputError(ValueError):
    """Bad input, settings or files: the message names what was seen and the way out.

    Every stage prints it as one line and exits with status 1, without a traceback.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, for errors of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
