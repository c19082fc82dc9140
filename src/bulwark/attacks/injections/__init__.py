"""How an injected text is put into the data: one file per published suite of attacks."""
