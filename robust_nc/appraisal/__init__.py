"""Judging a model that someone else made: from a reference to a record with evidence."""
