"""What people read: the board, the figures, the site."""
