"""Everything that touches torch modules: loading, sites, hooks, noise, reference statistics, scoring rows."""
