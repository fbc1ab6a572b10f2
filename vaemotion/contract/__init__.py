"""What training and the device must agree on: NumPy, OpenCV and soxr only."""
