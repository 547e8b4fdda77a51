"""The recipe of the embedded models: `python -m examples.emoji_lcm.build`."""
