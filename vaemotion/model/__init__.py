"""The model: backbones, audio pathway, EmoAdapter, checkpoint."""
