"""Schedulers: each decides in its own way who gets the rows of the next step, behind `plan.Scheduler`."""
