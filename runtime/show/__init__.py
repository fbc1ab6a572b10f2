"""The show: smoothed readings, committed labels, states, opening hours, controls."""
