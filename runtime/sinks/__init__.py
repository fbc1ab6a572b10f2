"""Sinks: where messages leave the runtime. Each runs on its own thread behind a bounded queue."""
