"""Audio tokenizers: neural codecs."""
