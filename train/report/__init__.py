"""What people read: tables, units, figures, the summary and the plots of a run."""
