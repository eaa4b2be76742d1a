"""Replays of numbers recorded from TRL's own trainers."""
