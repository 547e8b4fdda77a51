"""Pictures and tables drawn from a run's files, without a model."""
