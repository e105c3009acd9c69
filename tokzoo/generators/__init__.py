"""Generators: models of tokens; one file per published system."""
