//! Images verified as distributions publish them: real checksum files, real keys and signatures, a real server.

mod distributions;
mod keys;
mod modes;
mod publisher;
#[path = "../support/mod.rs"]
mod support;
