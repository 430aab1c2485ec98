"""Estimates with intervals: the unit is the cluster, and unknown is never turned into a number."""
