"""A new model version takes over without a restart: followed, checked, tried on a few, promoted or rolled back."""
