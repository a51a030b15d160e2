"""What a pretrained network must beat, as HEAR modules: the untrained network and log-mel statistics."""
