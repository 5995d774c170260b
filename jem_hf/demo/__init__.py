"""The page of `jem-hf demo`."""
