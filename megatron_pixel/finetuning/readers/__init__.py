"""Readers of labelled examples, one module for each published layout."""
