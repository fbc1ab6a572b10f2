"""INT8 engines: planned, searched within a budget, judged end to end."""
