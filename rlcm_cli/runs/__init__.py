"""What the phases of a run have in common: its processes, and the share of each in the work."""
