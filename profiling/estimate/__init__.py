"""Turns what the compiler says into seconds and core-hours, with an error bar."""
