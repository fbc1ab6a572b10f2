"""Evaluation: metrics and benchmark, for any `predict` callable."""
