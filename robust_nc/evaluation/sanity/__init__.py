"""Can the verdict be trusted? Each doubt has a name, a meaning and a remedy."""
