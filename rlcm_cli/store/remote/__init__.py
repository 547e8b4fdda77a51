"""A run on object storage: its objects, its stage on this machine, and what is published there."""
