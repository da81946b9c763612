"""The one exception for mistakes that a person can mend."""


class UserError(ValueError):
    """Bad input, told in one sentence: what, where, and what was expected.

    The command line prints the sentence and exits with status 2; no traceback.
    """
