"""Level 0: what every other level may use. Imports nothing from the package above it."""
