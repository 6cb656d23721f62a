//! The store against real servers on the loopback and real files.

mod backing;
#[path = "../support/fixture.rs"]
mod fixture;
mod formats;
mod full;
mod pull;
mod server;
mod sharing;
mod streaming;
#[path = "../support/mod.rs"]
mod support;
