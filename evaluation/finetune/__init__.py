"""Fine-tuning on labeled clips by the published recipes."""
