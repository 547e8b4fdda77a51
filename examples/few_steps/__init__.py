"""Quality in few steps, measured."""
