"""Programs for people and for other programs: the demo page, and a server of chat completions."""
