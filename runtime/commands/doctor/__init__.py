"""`vaemotion doctor`: check this machine and say how to fix it."""
