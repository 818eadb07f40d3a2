"""Weights, codecs and text encoders: everything that comes from files or other libraries."""
