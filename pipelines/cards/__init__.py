"""What a data set says of itself to others: a data card, Croissant metadata and a wids index."""

from pipelines.cards.writing import files

__all__ = ["files"]
