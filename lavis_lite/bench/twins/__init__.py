"""Plain twins: the same maths with the same parameters, computed the way LAVIS computes it."""
