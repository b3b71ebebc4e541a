"""Checkpoints from and for other projects."""
