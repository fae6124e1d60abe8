"""Keep records: their form, their files, and what they may disclose."""
