"""Snapshots of torch.cuda.memory: reading, contents, and replays under other settings."""
