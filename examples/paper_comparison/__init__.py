"""RLCM beside DDPO, REBEL and RWR, on the embedded models."""
