"""The exceptions that a person can do something about; each is one line."""


class InputError(ValueError):
    """Bad input: the message is one line that names the input, the rule and the value.

    Command-line programs print it to standard error and exit with status 2; nothing has been
    written when it is raised.
    """


class StudyStoppedError(RuntimeError):
    """A study cannot go on for now, though its settings are right: the machine lacks something.

    The message is one line that names what is missing. What has been done is kept, and the same
    command goes on from there; command-line programs print it and exit with status 1.
    """
