"""Definitions that training and the device share, on NumPy, OpenCV, soxr and tokenizers only."""
