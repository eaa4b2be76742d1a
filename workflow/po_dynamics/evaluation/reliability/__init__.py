"""What a judge's win rate is worth: without the effect of length, against other judges, against true labels."""
