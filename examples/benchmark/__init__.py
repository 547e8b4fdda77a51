"""Benchmarks that are plans in TOML: methods, models, tasks and seeds; their runs, results and tables."""
