"""From files to tensors: reading, columns as attributes, splits."""
