"""residua: deep residual learning end to end."""
