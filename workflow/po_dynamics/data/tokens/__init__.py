"""The rows of a data set as token ids: written once for a model, read by every stage of it."""
