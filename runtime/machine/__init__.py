"""The machine: facts, temperature, threads, signals, watchdog, child processes."""
