"""A job to a clip: models in memory, and the workers that hold them. No HTTP, no Ray."""
