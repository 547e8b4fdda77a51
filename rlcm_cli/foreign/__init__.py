"""Models and data that others made: found here or on the hub, and looked at before a library reads them."""
