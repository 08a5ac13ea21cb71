"""Published rivals of the TSAE, one small file per paper: each is one `System`."""
