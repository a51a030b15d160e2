"""M2D and MSM-MAE pretraining: audio → log-mel shards → checkpoint."""
