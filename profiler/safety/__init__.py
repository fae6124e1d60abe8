"""Handle files and text from elsewhere safely."""
