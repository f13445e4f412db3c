"""The order of the house itself."""
