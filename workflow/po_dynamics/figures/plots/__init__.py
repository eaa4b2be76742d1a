"""One module per figure: what it shows, and the caption under it."""
