"""Files: local paths, downloads, the Hugging Face hub, atomic writes, hashes, full disks."""
