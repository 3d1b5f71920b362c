"""What happened, as JSON, in the terminal and as a page."""
