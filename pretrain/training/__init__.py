"""The training run: loop, step, schedules, processes, states, metrics."""
