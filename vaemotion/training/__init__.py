"""Training: losses, loop, and the three stages."""
