"""Weights: reading published files, and tables that map them to our parameters and back."""
