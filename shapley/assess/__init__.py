"""The evaluator's side of impairment as a service: levels from heavy to light, against an endpoint (docs/assess.md)."""
