"""The parts of a recipe, one file each: frozen dataclasses that refuse what can never work. Nothing heavy here."""
