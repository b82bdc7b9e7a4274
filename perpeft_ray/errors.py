"""The one exception for input a person can correct."""


class InputError(ValueError):
    """Bad input: the message is one line that names the input, the rule and the value.

    Command-line programs print it to standard error and exit with status 2; nothing has been
    written when it is raised.
    """
