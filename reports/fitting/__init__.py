"""What fits on which device, asked of one model."""
