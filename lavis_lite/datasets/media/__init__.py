"""Images and videos: bytes -> pixels."""
