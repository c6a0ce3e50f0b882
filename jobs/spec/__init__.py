"""YAML to frozen models; metrics, and how a trial is judged."""
