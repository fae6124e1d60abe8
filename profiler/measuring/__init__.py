"""Real steps on real tensors: what they hold, how long they take, and what spoiled the times."""
