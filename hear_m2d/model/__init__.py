"""The model: log-mel front end, encoder, windows, pooling and timestamps."""
