"""A results folder packed into one file, and merged into another folder without loss. Files only, no torch."""
