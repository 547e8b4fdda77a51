"""How long runs with different settings go."""
