"""A long run, measured."""
