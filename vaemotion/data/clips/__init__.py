"""Clips as a source of training, calibration and judging: manifests, WebDataset shards, procedural art."""
