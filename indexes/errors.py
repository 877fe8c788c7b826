"""The one exception that a caller may want to catch: input or a folder that cannot be used as it is."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was found, what is allowed and what to do.

    The command line prints the message as one line and ends with status 2. Anything else that is raised is a
    bug of retrokit's and is reported as one.
    """


class ShardLost(InputError):
    """A worker of a sharded index is gone or silent; the message says which and how."""
