"""How the embedded few-step flow model and its teacher are made, from nothing."""
