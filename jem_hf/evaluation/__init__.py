"""How good a model is, beside classifiers and in the eyes of others."""
