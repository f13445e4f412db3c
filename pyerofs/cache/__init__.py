"""What is kept on disk: entries with blobs, and manifests."""
