"""Exceptions that a user can act on; each message is one line."""


class InputError(ValueError):
    """Bad input: the message is one line with the input, the rule and the value.

    Command-line programs print it to standard error and exit with status 2. It is raised before
    anything is written.
    """


class StudyStoppedError(RuntimeError):
    """A study with valid settings has to stop: the machine lacks something.

    The message is one line that names what is missing. Finished work is kept; rerun the same
    command to resume. Command-line programs print it and exit with status 1.
    """
