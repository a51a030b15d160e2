"""Baselines as HEAR modules: the untrained network and log-mel statistics."""
