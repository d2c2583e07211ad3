"""Data: text becomes tokens, tokens become windows, counting shows what a model must beat."""
