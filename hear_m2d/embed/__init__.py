"""`hear-m2d embed`: many files to embeddings, resumable."""
