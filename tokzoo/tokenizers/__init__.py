"""Tokenizers, by modality; one file per published system."""
