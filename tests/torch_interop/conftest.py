"""Modules that need torch or more, and have no doctests to collect."""

collect_ignore = ["convert.py", "data/make_hf_trainer_checkpoint.py", "resume.py"]
