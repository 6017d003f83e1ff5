"""Which devices form replicas: the genetic algorithm, and exact enumeration."""
