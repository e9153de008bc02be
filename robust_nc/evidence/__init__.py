"""Evidence: the adversarial examples that prove an upper bound, and what checks them."""
