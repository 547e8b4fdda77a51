"""What noise in training costs, measured."""
