"""One step on one process's device: DeepSpeed round the transformer, and what makes it fast."""
