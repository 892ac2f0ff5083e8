"""What a frozen vision encoder makes of images, kept on disk."""
