"""Level 8: blind rating forms for people, and what they answered."""
