"""Can the verdict be trusted? Each warning has a name, a meaning and a remedy."""
