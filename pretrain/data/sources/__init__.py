"""Where `prepare` reads audio: folders, CSV files, tar archives, Parquet and the hub."""
