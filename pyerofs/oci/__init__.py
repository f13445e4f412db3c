"""Names and documents of images. Opens no connection."""
