"""appraisal: say what this room holds."""
