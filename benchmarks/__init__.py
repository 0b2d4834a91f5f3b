"""Each method against its dense or naive baseline: one command each, a table and a JSON file."""
