"""Layers and models, made of the engine's formulas."""
