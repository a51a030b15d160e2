"""The tasks of HEAR: which there are, how they are downloaded, resampled and checked."""
