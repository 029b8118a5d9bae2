//! The `tapster` command.

fn main() {}
