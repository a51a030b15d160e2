"""Helpers that every part uses: devices, errors, files, operation counts, progress."""
