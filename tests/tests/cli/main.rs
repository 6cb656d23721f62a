//! Tests that run as anybody.

mod documents;
mod http_server;
mod images;
mod killed;
mod together;
mod transport;
mod usage;
mod verify;
