"""Procedural audio-visual art with known content and affect."""
