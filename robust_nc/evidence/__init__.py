"""Making the proof that a record carries: adversarial examples, exact and small."""
