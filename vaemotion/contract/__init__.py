"""Definitions that training and the device share, on NumPy, OpenCV and soxr only."""
