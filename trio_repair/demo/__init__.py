"""Real documents, real damage, and a proof that needs no engine: what `trio-repair demo` is made of."""
