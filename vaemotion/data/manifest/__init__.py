"""Data manifests: items, rules, reading, writing, media."""
