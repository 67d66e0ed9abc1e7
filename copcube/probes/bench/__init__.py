"""Copernicus-Bench: fifteen tasks that say what a frozen encoder's vectors are worth."""
