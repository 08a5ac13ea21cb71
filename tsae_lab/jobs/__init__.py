"""What a user starts: planned runs, training, commands on saved models, the bench."""
