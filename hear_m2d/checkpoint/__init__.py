"""Checkpoints: our format, the published files, names, downloads and the hub."""
