"""Answers to requests: what a command does, and the documents that show the state. Above the supervisor."""
