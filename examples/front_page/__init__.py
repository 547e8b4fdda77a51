"""The picture of the front page."""
