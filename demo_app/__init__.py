"""Degu Drop: share a folder between computers. The reference for embedding Degu."""
