"""From what the compiler says to seconds and core-hours, with an error bar."""
