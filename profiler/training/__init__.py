"""Run training steps: what simulation and measurement share."""
