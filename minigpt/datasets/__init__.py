"""Data: text, questions, images, sounds and tables, as the arrays that a model learns from."""
