"""The processes of one job: how they meet, what each has of the work, and what they sum."""
