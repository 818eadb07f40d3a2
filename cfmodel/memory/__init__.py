"""Memories of past latent frames, read by the network and changed at a chunk's commit."""
