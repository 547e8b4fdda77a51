"""Rewards of the user's own code."""
