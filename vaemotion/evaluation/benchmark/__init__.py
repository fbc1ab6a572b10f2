"""``vaemotion evaluate benchmark``: questions and labels of a manifest, by source and path."""
