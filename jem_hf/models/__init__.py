"""What travels inside a checkpoint as remote code: flat files that import each other as `from .file import name`."""
