"""Normalizer-free networks: structure, initial values, cost, released weights, prediction."""
