"""Text-to-SQL without a framework: schemas, SQL and its comparison, guarded execution, dialogue."""
