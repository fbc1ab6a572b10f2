"""The device: a bundle runs here, without torch."""
