"""What a run is shown: which clips, in which order and size, read, encoded and laid into batches ahead of the steps."""
