"""The worker that keeps the home in order: recovery, reclaim, metrics."""
