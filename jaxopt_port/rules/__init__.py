"""The optimizers, a file each: only what differs between them."""
