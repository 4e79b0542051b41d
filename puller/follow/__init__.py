"""Following a dataset for years: when to poll, one poll, what runs after a change, and what is remembered of it."""
