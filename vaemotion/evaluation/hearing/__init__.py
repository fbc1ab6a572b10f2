"""``vaemotion evaluate hearing``: recognition from sound alone, against controls, with a verdict."""
