"""Networks of VBench's dimensions, written anew; they take the published weights by name."""
