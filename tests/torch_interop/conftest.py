"""Modules that need torch or more, and have no doctests to collect."""

collect_ignore = ["convert.py", "files/same.py", "resume.py"]
collect_ignore_glob = ["data/make_*.py"]
