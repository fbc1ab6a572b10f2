"""Data: procedural audio-visual art, manifests, loading."""
