"""Performs what policy decided about runs, and finds out what became of them. For the supervisor; decides nothing."""
