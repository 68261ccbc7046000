"""Service files of Dynamo 0.x as fleets."""
