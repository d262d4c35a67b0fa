"""Estimates and measures what training costs: step time, memory, core-hours, input pipeline."""
