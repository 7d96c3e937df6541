"""The loop on many machines. Ray is imported nowhere else in `training`."""
