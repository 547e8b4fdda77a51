"""How far a reward goes before the subject is lost."""
