"""What eight small runs, their configs and six refusals come to: a refactoring must not move it."""
