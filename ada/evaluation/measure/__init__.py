"""How methods are measured: run, counted, timed, stored, and summed up with intervals that hold."""
