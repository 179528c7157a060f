"""What a check found, and how people read it: in a terminal, in markdown, in a browser."""
