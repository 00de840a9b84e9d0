"""What runs around a method: commands, checkpoints, export, timing, training, seeds."""
