"""The phases: files in, files out, plain functions that yield events."""
