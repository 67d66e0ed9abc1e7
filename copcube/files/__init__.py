"""Bytes at rest: files that appear whole, folders, locks, object stores."""
