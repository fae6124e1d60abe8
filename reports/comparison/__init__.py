"""Two runs side by side, and the gates that fail on what got worse."""
