"""Optimizers that evaluate the loss several times a step, and runs as a whole."""
