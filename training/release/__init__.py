"""What leaves a run: its record in MLflow, the exported model with its card, and which version gets the alias."""
