"""torch's files without torch."""
