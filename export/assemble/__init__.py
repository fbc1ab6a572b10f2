"""``vaemotion assemble``: a bundle of parts that were trained elsewhere."""
