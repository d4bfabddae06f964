"""Backbones and heads, the training of one trial, its metrics and health rules."""
