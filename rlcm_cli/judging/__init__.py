"""Judging images by rewards: what they come to in means and win rates."""
