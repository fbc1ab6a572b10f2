"""Describe manifests and procedural art."""
