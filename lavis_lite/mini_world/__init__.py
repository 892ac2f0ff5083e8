"""Data preparation: turns a source (here, a generator of scenes) into images and annotation files on disk."""
