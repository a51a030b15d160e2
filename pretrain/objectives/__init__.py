"""The objectives: M2D, M2D-X and MSM-MAE, and what they are made of."""
