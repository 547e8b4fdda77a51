"""The loop with its phases as tasks of a Ray cluster."""
