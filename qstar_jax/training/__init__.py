"""The loop: self-play, replay, learning, evaluation, checkpoints."""
