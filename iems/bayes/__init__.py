"""The Bayesian filter."""
