"""Layers that at least three systems share with the same equations."""
