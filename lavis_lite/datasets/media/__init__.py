"""Media: bytes of an image or a video -> pixels."""
