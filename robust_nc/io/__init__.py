"""Files that are whole or not there, digests of what they hold, bytes that strangers wrote."""
