"""`vaemotion soak`: simulated days of a live run, with faults."""
