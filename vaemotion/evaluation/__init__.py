"""Evaluation: metrics, the benchmark, the hearing report and linear baselines."""
