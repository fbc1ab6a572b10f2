"""Errors of an export."""

from __future__ import annotations

from vaemotion.contract.errors import UserError


class ExportError(UserError):
    """An export that could not be made, or is not what it must be."""
