"""A run: its directory and configuration, inputs, policy, schedules, alarms, and its stage on this machine."""
