"""Reading published datasets: the wire format, fetchers, planning, and targets that keep exact copies."""
