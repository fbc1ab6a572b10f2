"""`vaemotion train ablations`: short trainings that differ in one thing each."""
