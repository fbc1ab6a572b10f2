"""Turns a checkpoint into a verified bundle."""
