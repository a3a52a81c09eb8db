"""Other servers' names, for code that asks for them."""
