"""The C core, through pyerofs.core, and its run under sanitizers."""
