//! Nothing: a package needs a library, and the benches beside it share none.
