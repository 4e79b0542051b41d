"""Publishing a source whenever it changes, for years: when (`schedule`), by what signs (`notices`), and doing it (`watcher`)."""
