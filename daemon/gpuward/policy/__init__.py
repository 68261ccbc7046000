"""Decisions, pure: state and event in, state and effects out. No clock, no process, no file, no log."""
