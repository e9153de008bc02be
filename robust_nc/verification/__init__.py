"""Checking what others claim: seals, evidence, audits, challenges."""
