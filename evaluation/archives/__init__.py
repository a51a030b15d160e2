"""The tasks of HEAR: list, download, resample and check."""
