"""Procedural soundscapes: sources in known proportions, and labels by soundscape research."""
