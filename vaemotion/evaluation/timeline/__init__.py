"""``vaemotion evaluate timeline``: a run's readings against labels over time."""
