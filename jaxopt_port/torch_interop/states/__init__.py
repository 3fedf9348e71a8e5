"""What goes on in another framework: the states of optimizers, schedulers, scalers and averages, both ways."""
