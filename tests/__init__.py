"""Mirrors the tree: the tests of `room/file.py` stand in `tests/room/test_file.py`."""
