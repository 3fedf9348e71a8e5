"""Modules that are run by tests in processes of their own: they need torch, and have no doctests to collect."""

collect_ignore = ["oracle.py", "train/torch_side.py"]
