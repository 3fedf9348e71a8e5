"""torch's random numbers: its generator on a CPU, and the layers' initial weights."""
