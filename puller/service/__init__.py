"""What commands that run for years have in common: jobs, health, metrics, logs, settings. `process.Service` joins it."""
