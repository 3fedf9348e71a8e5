"""How the same weights lie in torch and in JAX: which array is which, and what is transposed, split, mirrored."""
