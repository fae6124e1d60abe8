"""What a run's records say, as numbers: medians, intervals, savings, peaks, fronts, courses."""
