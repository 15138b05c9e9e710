"""What we conclude from what was recorded."""
