"""`hear-m2d visualize`: what a network attends to and reconstructs."""
