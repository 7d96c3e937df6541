"""HTTP: what crosses the network, its translation to and from jobs, and who may pass."""
