"""Families of vision-language models, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vaemotion.contract.errors import UsageError
from vaemotion.model.backbone import Family
from vaemotion.model.families.qwen2_5_vl import QWEN2_5_VL
from vaemotion.model.families.smolvlm import IDEFICS3, SMOLVLM

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (SMOLVLM, IDEFICS3, QWEN2_5_VL)}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a ``config.json``; configs of this project's own bases name none.

    Raises UsageError for a model that has no family here.
    """
    model_type = config.get("model_type", SMOLVLM.model_type)
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(f"{name} ({other.name})" for name, other in FAMILIES.items())
        raise UsageError(f"no vision-language model of type {model_type!r} can be the base; known: {known}")
    return family
