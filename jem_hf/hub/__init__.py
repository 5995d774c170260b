"""The zoo, model cards and Spaces."""
