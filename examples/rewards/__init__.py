"""What training for a reward does to it, to the others, and to the subject."""
