//! Tests that run as anybody.

mod documents;
mod http_server;
mod usage;
mod verify;
