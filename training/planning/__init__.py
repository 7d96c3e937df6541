"""What a run takes, before anything is started: pure arithmetic on a recipe, a base's config and a GPU."""
