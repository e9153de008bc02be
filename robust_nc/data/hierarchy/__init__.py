"""Trees of classes, and the distances between classes that they give."""
