"""The on-disk contract: paths, atomic publication, manifests, shards, checkpoints."""
