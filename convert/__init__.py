"""Converts weights between PyTorch and this project."""
