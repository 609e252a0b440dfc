"""Level 0: foundations that all other packages may import; imports none of them."""
