"""Files of other systems: Dynamo YAML in, exports out."""
