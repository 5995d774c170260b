"""A data set put in order by a model: tagged, audited, balanced."""
