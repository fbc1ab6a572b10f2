"""Errors that are the user's to mend: one plain sentence each, with the way out.

The command line prints their message without a traceback and exits with ``exit_code``: 1 failed, 2 wrong usage.
"""

from __future__ import annotations


class UserError(Exception):
    """What was asked for failed, and the message says what to do about it."""

    exit_code = 1


class UsageError(UserError):
    """What was asked for makes no sense: a wrong argument or a wrong combination of them."""

    exit_code = 2
