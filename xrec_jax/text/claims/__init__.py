"""Claims that a free text makes about an item."""
