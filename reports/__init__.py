"""What stands after the runs: their list, their comparison, their report and their figures.

Everything is read from run folders (run.json, metrics.csv, config.yaml); importing this room brings
in neither torch nor Lightning.
"""
