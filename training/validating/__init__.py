"""Clips that are sampled and measured beside the training, off its workers."""
