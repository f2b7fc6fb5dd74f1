"""Analyses read a model and return findings; they never edit it."""
