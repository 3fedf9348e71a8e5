"""Modules that need torch, and have no doctests to collect."""

collect_ignore = ["convert.py", "resume.py"]
