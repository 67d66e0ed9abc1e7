"""Stored bytes: files that appear complete, folders, locks, object stores."""
