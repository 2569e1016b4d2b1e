"""PyTorch BN-Inception weights to Flax, and back."""
