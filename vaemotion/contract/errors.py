"""Errors that the user can resolve: one plain sentence each, with the way out.

The command line prints the message without a traceback and exits with ``exit_code``: 1 failed, 2 wrong usage.
"""

from __future__ import annotations


class UserError(Exception):
    """A request that failed; the message says what to do about it."""

    exit_code = 1


class UsageError(UserError):
    """A wrong argument, or a wrong combination of arguments."""

    exit_code = 2
