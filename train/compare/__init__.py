"""The same run in PyTorch and here, step by step: `python -m train.compare --help`."""
