"""Configs and files that nobody meant: each is refused in words, or it works."""
