//! Tests that run as anybody.

mod documents;
mod http_server;
mod images;
mod usage;
mod verify;
