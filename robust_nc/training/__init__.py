"""Objectives (the defenses), losses, schedules, the loop, checkpoints."""
