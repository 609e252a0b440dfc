"""Blind rating forms for people, and their answers."""
