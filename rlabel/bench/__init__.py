"""How fast it is: models of a chosen shape, a drawn corpus, rounds of measurements, a table. Measures what the other rooms do; nothing else uses it."""
