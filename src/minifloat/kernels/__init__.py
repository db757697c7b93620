"""The ops that packed layers run through, and the rows that can run them."""
