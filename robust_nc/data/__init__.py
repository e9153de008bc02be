"""Readers of data sets, and batches that live on the device."""
