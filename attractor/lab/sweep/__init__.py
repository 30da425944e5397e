"""Many runs: jobs of a sweep, their table and figures."""
