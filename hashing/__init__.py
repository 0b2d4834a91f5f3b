"""Lifelong cross-modal hashing in plain PyTorch: networks, losses, codes, metrics, search."""
