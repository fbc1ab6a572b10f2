"""Definitions that training and the device share, on NumPy, OpenCV, soxr, tokenizers and Rich only."""
