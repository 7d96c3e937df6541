"""What a step is told of and judged by, and traces on request."""
