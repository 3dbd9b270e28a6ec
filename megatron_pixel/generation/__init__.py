"""Reading on: text token by token, pages patch by patch, from a decoder with a key-value cache."""
