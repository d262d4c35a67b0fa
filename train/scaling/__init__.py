"""Scaling laws fitted to tables of runs, and the choice of the checkpoint to fine-tune.

`run_table` reads the tables, `points` turns their runs into arrays, `laws/` holds each law and its
fit, and `bootstrap` adds confidence intervals. `outliers` judges single runs, and `hold_out` tests
how well the laws predict runs that they were not fitted to. `analysis` does all of this for one
table; `analysis_text`, `analysis_json` and `analysis_plots` then show the results.
`checkpoint_choice` ranks pre-trained networks by the error expected after fine-tuning.

Of the rest of `train`, these modules import `train.report` only.
"""
