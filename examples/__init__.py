"""Programs that use the toolkit."""
