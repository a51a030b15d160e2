"""Training data: from audio files to prepared shards, crops and batches."""
