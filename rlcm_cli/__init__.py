"""Fine-tune few-step text-to-image models for a reward, by reinforcement learning, in phases that meet in files."""

__version__ = "0.1.0"
