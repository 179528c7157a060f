"""Reports of checks: in a terminal, in markdown, in a browser."""
