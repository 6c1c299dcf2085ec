"""Measurements: each prints figures that one run measured. No benchmark is a test."""
