"""figures: say what this room holds."""
