"""Speed and parity, measured as ratios within one run: `python -m benchmarks.NAME`."""
