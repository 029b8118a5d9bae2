//! Who is not let in over TLS: refused, named in words, and counted once, on both sides.
