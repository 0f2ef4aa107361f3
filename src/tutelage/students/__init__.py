"""Students: spec, build, compact families, taps, branches."""
