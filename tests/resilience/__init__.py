"""What a run outlives: being killed anywhere, a full disk, files that are cut off or foreign."""
