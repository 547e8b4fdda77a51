"""What a configuration costs on this machine: speed, memory, and whether everything that it needs is there."""
