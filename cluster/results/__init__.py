"""The schema, the commit, integrity and snapshots."""
