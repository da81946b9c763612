"""The one exception for mistakes that the user can fix. Imports nothing."""


class UserError(ValueError):
    """Bad input, explained in one sentence: what was found, where, and what was expected.

    The command line prints the sentence, without a traceback, and exits with status 2.
    """
