"""Data that is made here: nothing to download, the same for the same seed on every machine."""
