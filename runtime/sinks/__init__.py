"""Sinks, through which messages leave the runtime; each has a thread behind a bounded queue."""
