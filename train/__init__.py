"""Trains the CIFAR-10 tutorial network with `jaxopt_port`: `python -m train --help`."""
