"""Several runs side by side: curves against cost, tables, pictures."""
