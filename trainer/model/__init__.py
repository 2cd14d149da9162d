"""Frozen ViT backbones, their weights, and the prompted model."""
